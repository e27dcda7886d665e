"""How results are written: whole files, tables, charts."""
