for (const table of document.querySelectorAll("table")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const value = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || value(a).localeCompare(value(b));
        return x - y;
      };
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort(compare);
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  }
}
