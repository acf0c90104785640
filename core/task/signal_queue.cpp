#include "core/task/signal_queue.h"

#include <signal.h>
#include <sys/ptrace.h>

#include <array>

#include "core/base/error.h"

namespace migrate {

void read_signal_queue(Tid tid, bool shared, img::signal_queue_entry& out) {
  std::array<siginfo_t, 32> infos;
  struct __ptrace_peeksiginfo_args args {};
  args.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
  args.nr = static_cast<int>(infos.size());
  for (;;) {
    const long n = check(::ptrace(PTRACE_PEEKSIGINFO, tid.get(), &args, infos.data()),
                         "read the pending signals of thread", std::to_string(tid.get()));
    for (long i = 0; i < n; ++i) out.add_signals()->set_siginfo(&infos[static_cast<size_t>(i)], sizeof(siginfo_t));
    args.off += static_cast<uint64_t>(n);
    if (n < args.nr) return;
  }
}

}  // namespace migrate
