"""From records to rows: gathered, folded over seeds, set beside published cells."""
