"""The page: a view in the browser of each thing that the library does, on one's own machine."""
