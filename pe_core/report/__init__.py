"""What every study says its results with: claims, tables, figures; and what a notebook begins with."""
