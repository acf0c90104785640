// Limits of an IPC namespace, under /proc/sys.
#include <sstream>

#include "core/base/error.h"
#include "core/ipc/ipc_images.h"
#include "core/ipc/ipc_namespace.h"

namespace migrate {
namespace {

std::string text_of(const std::string& path) {
  const Fd file = open_ipc_setting(path, O_RDONLY);
  std::string text(256, '\0');
  text.resize(read_full(file.get(), std::as_writable_bytes(std::span(text)), path));
  return text;
}

uint64_t number_of(const std::string& path) {
  std::istringstream words(text_of(path));
  uint64_t value = 0;
  words >> value;
  return value;
}

/// Called with the name of each setting of one number, and a way to read and write it in the image.
template <class See>
void for_settings(img::ipc_var_entry& e, See see) {
  const auto one = [&](const char* path, uint64_t value, auto set) { see(path, value, set); };
  one("kernel/msgmax", e.msg_ctlmax(), [&](uint64_t v) { e.set_msg_ctlmax(static_cast<uint32_t>(v)); });
  one("kernel/msgmnb", e.msg_ctlmnb(), [&](uint64_t v) { e.set_msg_ctlmnb(static_cast<uint32_t>(v)); });
  one("kernel/msgmni", e.msg_ctlmni(), [&](uint64_t v) { e.set_msg_ctlmni(static_cast<uint32_t>(v)); });
  one("kernel/shmmax", e.shm_ctlmax(), [&](uint64_t v) { e.set_shm_ctlmax(v); });
  one("kernel/shmall", e.shm_ctlall(), [&](uint64_t v) { e.set_shm_ctlall(v); });
  one("kernel/shmmni", e.shm_ctlmni(), [&](uint64_t v) { e.set_shm_ctlmni(static_cast<uint32_t>(v)); });
  one("kernel/shm_rmid_forced", e.shm_rmid_forced(),
      [&](uint64_t v) { e.set_shm_rmid_forced(static_cast<uint32_t>(v)); });
  one("fs/mqueue/queues_max", e.mq_queues_max(), [&](uint64_t v) { e.set_mq_queues_max(static_cast<uint32_t>(v)); });
  one("fs/mqueue/msg_max", e.mq_msg_max(), [&](uint64_t v) { e.set_mq_msg_max(static_cast<uint32_t>(v)); });
  one("fs/mqueue/msgsize_max", e.mq_msgsize_max(), [&](uint64_t v) { e.set_mq_msgsize_max(static_cast<uint32_t>(v)); });
  one("fs/mqueue/msg_default", e.mq_msg_default(), [&](uint64_t v) { e.set_mq_msg_default(static_cast<uint32_t>(v)); });
  one("fs/mqueue/msgsize_default", e.mq_msgsize_default(),
      [&](uint64_t v) { e.set_mq_msgsize_default(static_cast<uint32_t>(v)); });
}

void set_text(const std::string& path, const std::string& text) {
  const Fd file = open_ipc_setting(path, O_WRONLY);
  write_full(file.get(), as_bytes_of(text), "/proc/sys/" + path);
}

[[noreturn]] void refuse(const char* path, const std::string& value) {
  throw Refusal("the tree's IPC namespace has a limit that only an administrator can give: /proc/sys/" +
                    std::string(path) + " is " + value,
                "lower it at the source");
}

}  // namespace

img::ipc_var_entry read_ipc_settings() {
  img::ipc_var_entry e;
  e.set_auto_msgmni(0);
  for_settings(e, [](const char* path, uint64_t, auto set) {
    try {
      set(number_of(path));
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;
      set(0);  // a kernel without
    }
  });
  std::istringstream words(text_of("kernel/sem"));
  for (uint32_t value = 0; words >> value;) e.add_sem_ctls(value);
  return e;
}

void write_ipc_settings(const img::ipc_var_entry& settings, bool trusted) {
  img::ipc_var_entry now = read_ipc_settings();
  img::ipc_var_entry wanted = settings;
  std::map<std::string, uint64_t> have;
  for_settings(now, [&](const char* path, uint64_t value, auto) { have[path] = value; });
  for_settings(wanted, [&](const char* path, uint64_t value, auto) {
    const bool may_be_zero = std::string_view(path) == "kernel/shm_rmid_forced";
    if (have[path] == value || (value == 0 && !may_be_zero)) return;
    if (!trusted && value > have[path]) refuse(path, std::to_string(value));
    set_text(path, std::to_string(value));
  });
  std::string wanted_sem, now_sem;
  for (const uint32_t value : settings.sem_ctls()) wanted_sem += std::to_string(value) + " ";
  for (const uint32_t value : now.sem_ctls()) now_sem += std::to_string(value) + " ";
  if (settings.sem_ctls_size() != 4 || wanted_sem == now_sem) return;
  for (int i = 0; i < 4 && !trusted; ++i)
    if (settings.sem_ctls(i) > now.sem_ctls(i)) refuse("kernel/sem", wanted_sem);
  set_text("kernel/sem", wanted_sem);
}

}  // namespace migrate
