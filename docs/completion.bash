# bash completion for migrate
_migrate() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}
  local core="--tree --images-dir --work-dir --log-file --verbosity --leave-running --leave-stopped --restore-detached
    --restore-sibling --shell-job --tcp-close --ext-unix-sk --link-remap --file-locks --display-stats --log-pid
    --ghost-limit --timeout --pidfile --status-fd --action-script --root --config --no-default-config"
  local pages="--prev-images-dir --track-mem --track-timeout --page-server --address --port --ps-socket --tls --tls-cacert
    --tls-cacrl --tls-cert --tls-key --tls-no-cn-verify --insecure --bandwidth-limit --auto-dedup --pre-dump-mode"
  local link="--cacert --cert --key --crl --insecure --insecure-force --json"
  local session="$link --state-dir --verbose"
  if [ "$COMP_CWORD" = 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W "send receive resolve keys dump pre-dump untrack page-server lazy-pages restore check --version --help" -- "$cur")
    return
  fi
  case $prev in
    -D|--images-dir|--prev-images-dir|-W|--work-dir|--dir|--state-dir|-r|--root) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return;;
    -o|--log-file|--tls-cacert|--tls-cacrl|--tls-cert|--tls-key|--cacert|--cert|--key|--crl|--pidfile|--config|--action-script|--report) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return;;
    --mode) mapfile -t COMPREPLY < <(compgen -W "precopy stop-copy postcopy hybrid auto" -- "$cur"); return;;
    --compress) mapfile -t COMPREPLY < <(compgen -W "off auto lz4 zstd zstd:1 zstd:3" -- "$cur"); return;;
    --on-no-convergence) mapfile -t COMPREPLY < <(compgen -W "stop throttle cancel postcopy" -- "$cur"); return;;
    --pre-dump-mode) mapfile -t COMPREPLY < <(compgen -W "splice read" -- "$cur"); return;;
    --feature) mapfile -t COMPREPLY < <(compgen -W "list $("${COMP_WORDS[0]}" check --feature list 2>/dev/null)" -- "$cur"); return;;
    --cgroup) mapfile -t COMPREPLY < <(for top in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        [ -e "$top/cgroup.procs" ] && compgen -d -- "$top${cur:-/}" | sed "s:^$top::"; done | sort -u); return;;
    --tls-name|--listen|--accept|--allow-uid|--allow-gid|--deny-caps|--max-sessions|--max-tasks|--max-memory|--max-downtime|--abort-downtime|--max-rounds|--max-total-time|--streams|--bandwidth-limit|--recover-timeout|--peer|--force-run|\
    --force-kill|--address|--port|--ps-socket|--timeout|--ghost-limit|--track-timeout|--client-timeout|--status-fd|--days|--verbosity) return;;
    -t|--tree) mapfile -t COMPREPLY < <(compgen -W "$(ps -eo pid=)" -- "$cur"); return;;
  esac
  case $verb in
    dump) mapfile -t COMPREPLY < <(compgen -W "$core $pages --lazy-pages --client-timeout" -- "$cur");;
    pre-dump) mapfile -t COMPREPLY < <(compgen -W "$core $pages" -- "$cur");;
    page-server) mapfile -t COMPREPLY < <(compgen -W "$core $pages --daemon" -- "$cur");;
    untrack) mapfile -t COMPREPLY < <(compgen -W "--tree" -- "$cur");;
    restore) mapfile -t COMPREPLY < <(compgen -W "$core --lazy-pages" -- "$cur");;
    lazy-pages) mapfile -t COMPREPLY < <(compgen -W "--images-dir --work-dir --log-file --verbosity --pidfile --status-fd --log-pid --daemon
      --page-server --address --port --tls --tls-cacert --tls-cacrl --tls-cert --tls-key --tls-no-cn-verify --insecure --recover-timeout" -- "$cur");;
    check) mapfile -t COMPREPLY < <(compgen -W "$link --tls-name --feature --all --extra --experimental" -- "$cur");;
    send) mapfile -t COMPREPLY < <(compgen -W "$session --mode --max-downtime --abort-downtime --max-rounds --max-total-time --on-no-convergence --allow-postcopy --recover-timeout
      --report --streams --compress --bandwidth-limit --tcp-close --ext-unix-sk --ghost-limit --shell-job --parent-may-notice --files-shared --tls-name" -- "$cur");;
    receive) mapfile -t COMPREPLY < <(compgen -W "$session --listen --once --max-sessions --max-tasks --max-memory --accept --allow-uid --allow-gid --deny-caps --root --cgroup --no-compress --status-fd" -- "$cur");;
    resolve) mapfile -t COMPREPLY < <(compgen -W "$session --peer --tls-name --force-run --force-kill" -- "$cur");;
    keys) mapfile -t COMPREPLY < <(compgen -W "--dir --days --force" -- "$cur");;
  esac
}
complete -F _migrate migrate
