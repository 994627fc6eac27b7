"""What the papers claim, judged by runs."""
