"""The HTML report: results, figures and the page."""
