"""One lab from up to down."""
