"""The audit of the data: label errors, near-duplicates, outliers, class balance, and a page to look at them.

`tools/audit.py` runs the parts. A part is a module here that gets images, labels, features or probabilities, and
returns indices and scores. `findings` puts them together, `tables` writes them, and `page` shows them.
"""
