#!/usr/bin/env bash
# Sets up what the page needs, and serves it on http://127.0.0.1:7860.
# bash scripts/app.sh [key=value ...]     weight=weight/coco_fold0 folder=photos port=8000
set -euo pipefail
. "$(dirname "$0")/setup.sh"
"$PYTHON" -c "import gradio" 2>/dev/null ||
  "$PYTHON" -m pip install -q --disable-pip-version-check "gradio>=6,<7" >&2
exec "$PYTHON" -m diffews app "$@"
