#!/usr/bin/env bash
# Tests our label files with the tools that they are for (pycocotools, supervision, Label Studio's
# SDK, LabelMe), in .venv-readers, since their pins clash with ours.
# bash scripts/label_readers.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/setup.sh"
readers=$root/.venv-readers list=$root/tests/evaluation/label_readers.txt
if ! cmp -s "$list" "$readers/installed"; then
  "${PYTHON_FOR_VENV:-python3}" -m venv "$readers"
  "$readers/bin/python" -m pip install -q --disable-pip-version-check -r "$list"
  cp "$list" "$readers/installed"
fi
cd "$root"
LABEL_READERS=$readers/bin/python exec "$PYTHON" -m pytest -m slow \
  tests/evaluation/test_label_readers.py "$@"
