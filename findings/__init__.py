"""The findings at the scale ``tiny``: the published studies, their committed tables in docs/findings, and the page
docs/findings.md, which is written from these tables."""
