"""Teacher and student: loading, slicing, aligning, heads and vocabularies."""
