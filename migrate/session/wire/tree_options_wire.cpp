#include "migrate/session/wire/tree_options_wire.h"

namespace migrate {

void to_wire(const TreeOptions& options, wire::TreeOptions& message) {
  message.set_shell_job(options.shell_job);
  message.set_tcp_close(options.tcp_close);
  message.set_ext_unix_sk(options.ext_unix_sk);
  message.set_link_remap(options.link_remap);
  message.set_file_locks(options.file_locks);
  message.set_ghost_limit(options.ghost_limit);
}

TreeOptions from_wire(const wire::TreeOptions& message) {
  return {.shell_job = message.shell_job(),
          .tcp_close = message.tcp_close(),
          .ext_unix_sk = message.ext_unix_sk(),
          .link_remap = message.link_remap(),
          .file_locks = message.file_locks(),
          .ghost_limit = message.ghost_limit()};
}

}  // namespace migrate
