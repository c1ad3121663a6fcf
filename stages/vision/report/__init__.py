"""The HTML report: results, figures and the page.

To add a chart, write a function in charts.py, add it to `make_charts` there, and place it in page.html.jinja. To show
another file of the run, read it in results.py.
"""
