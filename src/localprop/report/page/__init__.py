"""A page of results: what `localprop report` writes.

`results` reads the files of comparisons and runs, `anatomy` looks at how each method trains the
network, `draw_*` draw, `sentences` says what is seen, and `write` puts all into one HTML file.
"""
