# bash completion for migrate
_migrate() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}
  local core="--tree --images-dir --work-dir --log-file --verbosity --leave-running --leave-stopped --restore-detached
    --restore-sibling --shell-job --tcp-close --ext-unix-sk --link-remap --file-locks --display-stats --log-pid
    --ghost-limit --timeout --pidfile --status-fd --action-script --root --config --no-default-config"
  local tls="--cacert --cert --key --crl --insecure --state-dir --json"
  if [ "$COMP_CWORD" = 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W "send receive resolve keys dump restore check --version --help" -- "$cur")
    return
  fi
  case $prev in
    -D|--images-dir|-W|--work-dir|--dir|--state-dir|-r|--root) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return;;
    -o|--log-file|--cacert|--cert|--key|--crl|--pidfile|--config|--action-script) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return;;
    -t|--tree) mapfile -t COMPREPLY < <(compgen -W "$(ps -eo pid=)" -- "$cur"); return;;
  esac
  case $verb in
    dump|restore) mapfile -t COMPREPLY < <(compgen -W "$core" -- "$cur");;
    check) mapfile -t COMPREPLY < <(compgen -W "--feature --all" -- "$cur");;
    send) mapfile -t COMPREPLY < <(compgen -W "$tls --streams --tcp-close --shell-job --files-shared" -- "$cur");;
    receive) mapfile -t COMPREPLY < <(compgen -W "$tls --listen --once --accept --allow-uid --deny-caps --root --status-fd" -- "$cur");;
    resolve) mapfile -t COMPREPLY < <(compgen -W "$tls --force-run --force-kill" -- "$cur");;
    keys) mapfile -t COMPREPLY < <(compgen -W "--dir --days" -- "$cur");;
  esac
}
complete -F _migrate migrate
