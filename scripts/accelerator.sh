#!/usr/bin/env bash
# Checks and measures everything that needs an accelerator, in at most 25 minutes, on one GPU or TPU chip: one JSON file, one page.
#     scripts/accelerator.sh                         # docs/reports/accelerator.json and accelerator.md
#     scripts/accelerator.sh --small --output /tmp   # a dry run at small shapes, on whatever there is
set -euo pipefail
cd "$(dirname "$0")/.."
exec python -m scripts.accelerator "$@"
