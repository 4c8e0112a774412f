"""What everything else stands on, and what knows of no recipe: errors, files, text, tables, names."""
