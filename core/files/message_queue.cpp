#include "core/files/message_queue.h"

#include <sys/vfs.h>

namespace migrate {

bool is_message_queue(const OpenFile& file) {
  constexpr auto kMagic = 0x19800202;  // MQUEUE_MAGIC, ipc/mqueue.c
  if (file.type() != S_IFREG || file.link.rfind('/') != 0) return false;
  if (!file.ours && file.fd < 0) return false;
  const Fd found = file.ours ? Fd() : file.proc->open("fd/" + std::to_string(file.fd), O_PATH);
  struct statfs on {};
  check(::fstatfs(file.ours ? file.ours.get() : found.get(), &on), "look up the file system of", file.link);
  return on.f_type == kMagic;
}

}  // namespace migrate
