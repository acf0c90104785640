#include "core/restore/begin_afresh.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/restore/shell.h"

namespace migrate {
namespace {

void keep_only(std::vector<Fd*> kept) {
  std::erase_if(kept, [](const Fd* fd) { return !*fd; });
  constexpr int kHigh = 100;
  int above = kHigh;
  for (Fd* fd : kept) {
    *fd = move_above(std::move(*fd), above);
    above = fd->get() + 1;
  }
  std::vector<int> numbers;
  numbers.reserve(kept.size());
  for (const Fd* fd : kept) numbers.push_back(fd->get());
  close_all_but(numbers, 3);
  for (Fd* fd : kept) *fd = fd->dup();
}

}  // namespace

void raise_limit_of_files() {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == files.rlim_max) return;
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
}

void begin_afresh(std::vector<Fd*> kept) {
  const int null = open_path("/dev/null", O_RDWR).release();  // closed below with what we inherited
  for (int fd = 0; fd <= 2; ++fd) check(::dup2(null, fd), "redirect", "the standard descriptors");
  keep_only(std::move(kept));
  raise_limit_of_files();
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
}

}  // namespace migrate
