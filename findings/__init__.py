"""The findings at the scale ``tiny``: the studies that are published, their committed tables in docs/findings, and the
page docs/findings.md that is written from them."""
