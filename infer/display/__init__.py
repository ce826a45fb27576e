"""What a notebook shows: replies as HTML, a reply while it grows, the tree of a round, and plots of a benchmark."""
