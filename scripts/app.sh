#!/usr/bin/env bash
# Sets up what the page needs, and serves it on http://127.0.0.1:7860.
# bash scripts/app.sh [key=value ...]     weight=weight/coco_fold0 folder=photos port=8000
# bash scripts/app.sh setup [package ...] sets up alone, with more packages
set -euo pipefail
. "$(dirname "$0")/setup.sh"

# gradio wants an older Pillow than is pinned: an environment of its own, which sees the other
app=$root/.venv-app
if ! "$app/bin/python" -c "import gradio" 2>/dev/null; then
  echo "setting up $app" >&2
  "$PYTHON" -m venv "$app" >&2
  paths='import sysconfig; print(sysconfig.get_paths()["purelib"])'
  "$PYTHON" -c "$paths" >"$("$app/bin/python" -c "$paths")/diffews.pth"
  "$app/bin/python" -m pip install -q --disable-pip-version-check "gradio>=6,<7" >&2
fi
if [ "${1:-}" = setup ]; then
  shift
  [ $# = 0 ] || "$app/bin/python" -m pip install -q --disable-pip-version-check "$@" >&2
  exit
fi
exec "$app/bin/python" -m diffews app "$@"
