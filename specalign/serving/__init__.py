"""Where drafters are served: from a run to a serving command."""
