"""Tables and the page: Markdown, LaTeX, HTML, the terminal."""
