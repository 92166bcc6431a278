"""The results service: a store as pages and as JSON, over HTTP. Reads only."""
