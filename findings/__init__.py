"""What the studies found at the scale ``tiny``, in numbers that are committed: docs/findings/*.csv, and the page
docs/findings.md that is written from them."""
