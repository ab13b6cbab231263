"""What sweeps found: records read, put into rows, shown as tables, figures and a page."""
