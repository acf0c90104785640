#include "core/files/reuseport_programs.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/base/bpf_iterator.h"
#include "core/base/error.h"

namespace migrate {
namespace {

std::optional<Fd> load_program() {
  using namespace bpf;
  const KernelTypes types;
  if (!types) return std::nullopt;
  const int target = types.function("bpf_iter_task_file");
  constexpr auto kContext = "bpf_iter__task_file";
  const int meta_at = types.at(kContext, "meta"), fd_at = types.at(kContext, "fd"),
            file_at = types.at(kContext, "file");
  const int seq_at = types.at("bpf_iter_meta", "seq"), sk_at = types.at("socket", "sk");
  const int group_at = types.at("sock", "sk_reuseport_cb"), program_at = types.at("sock_reuseport", "prog");
  for (const int found : {target, meta_at, fd_at, file_at, seq_at, sk_at, group_at, program_at})
    if (found < 0) return std::nullopt;

  // struct socket* s = ctx->file ? bpf_sock_from_file(ctx->file) : 0;
  // if (s && s->sk && s->sk->sk_reuseport_cb && s->sk->sk_reuseport_cb->prog)
  //   { uint64_t fd = ctx->fd; bpf_seq_write(ctx->meta->seq, &fd, sizeof fd); } return 0;
  constexpr int kRecord = -8;
  const std::array program{
      load(BPF_REG_6, BPF_REG_1, meta_at),
      load32(BPF_REG_7, BPF_REG_1, fd_at),
      load(BPF_REG_1, BPF_REG_1, file_at),
      skip_if_zero(BPF_REG_1, 14),
      call(BPF_FUNC_sock_from_file),
      skip_if_zero(BPF_REG_0, 12),
      load(BPF_REG_1, BPF_REG_0, sk_at),
      skip_if_zero(BPF_REG_1, 10),
      load(BPF_REG_1, BPF_REG_1, group_at),
      skip_if_zero(BPF_REG_1, 8),
      load(BPF_REG_1, BPF_REG_1, program_at),
      skip_if_zero(BPF_REG_1, 6),
      store(BPF_REG_10, kRecord, BPF_REG_7),
      load(BPF_REG_1, BPF_REG_6, seq_at),
      copy(BPF_REG_2, BPF_REG_10),
      add(BPF_REG_2, kRecord),
      set(BPF_REG_3, sizeof(uint64_t)),
      call(BPF_FUNC_seq_write),
      set(BPF_REG_0, 0),
      leave(),
  };
  return load_iterator("migrate_files", target, program);
}

}  // namespace

std::optional<ReuseportPrograms> ReuseportPrograms::open() {
  std::optional<Fd> program = load_program();
  if (!program) return std::nullopt;
  ReuseportPrograms programs(std::move(*program));
  try {
    programs.of(::getpid());
  } catch (const Error&) {  // older than 6.1
    return std::nullopt;
  }
  return programs;
}

std::set<int> ReuseportPrograms::of(pid_t pid) const {
  std::set<int> found;
  bpf::iterate(program_, pid, sizeof(uint64_t), [&](std::span<const std::byte> record) {
    uint64_t fd = 0;
    std::memcpy(&fd, record.data(), sizeof fd);
    return found.insert(static_cast<int>(fd)).second;  // else it begins anew
  });
  return found;
}

void ReuseportCheck::check(int socket, pid_t pid, int fd, const std::string& who) {
  int grouped = 0;
  socklen_t size = sizeof grouped;
  if (::getsockopt(socket, SOL_SOCKET, SO_REUSEPORT, &grouped, &size) != 0 || grouped == 0) return;
  if (!std::exchange(opened_, true)) programs_ = ReuseportPrograms::open();
  if (!programs_) return;
  try {
    if (std::exchange(last_, pid) != pid) found_ = programs_->of(pid);
  } catch (const Error&) {  // the task has ended
    found_.clear();
  }
  if (found_.contains(fd))
    throw Refusal(who +
                      ", a socket of a group in which a program chooses (SO_ATTACH_REUSEPORT_CBPF or _EBPF), which "
                      "cannot be read back",
                  "start the program without that");
}

}  // namespace migrate
