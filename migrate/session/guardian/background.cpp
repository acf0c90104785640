#include "migrate/session/guardian/background.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

namespace migrate {

void go_to_background(std::initializer_list<int> keep) noexcept {
  ::setsid();
  for (int sig : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGTSTP, SIGTTOU}) ::signal(sig, SIG_IGN);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDWR);
  ::dup2(null, 0);
  ::dup2(null, 1);
  // First clear of the numbers that they move to.
  constexpr int kFirst = 3, kMost = 4;
  int high[kMost] = {}, count = 0;
  for (const int fd : keep) {
    if (count < kMost) high[count++] = ::fcntl(fd, F_DUPFD, kFirst + kMost);
  }
  for (int i = 0; i < count; ++i) ::dup2(high[i], kFirst + i);
  ::close_range(static_cast<unsigned>(kFirst + count), ~0U, 0);
}

std::vector<char*> argv_of(std::vector<std::string>& words) {
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

void execute_in_background(std::initializer_list<int> keep, char* const* argv) noexcept {
  go_to_background(keep);
  ::execv("/proc/self/exe", argv);
  ::_exit(127);
}

}  // namespace migrate
