"""One lab: made, changed, asked, scaled, removed."""
