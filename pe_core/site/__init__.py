"""The site: its pages, and what builds and checks them."""
