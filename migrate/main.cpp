// The program: a command of the user's, or one of our own helpers. Everything else is wired from here.
//
// Exit codes of the low-level verbs: 0 done, 1 failed. Of send, receive and resolve: see migrate/session/README.md.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <exception>
#include <iostream>
#include <string_view>

#include "core/base/refusals.h"
#include "migrate/cli/command_line.h"
#include "migrate/cli/commands.h"
#include "migrate/session/base/session.h"
#include "migrate/session/telling/failure.h"

namespace {

/// What whoever started us may have taken away: a descriptor of ours must not get a number that we print to, and a file
/// that is as large as it may be (RLIMIT_FSIZE) is an error like a full disk, not our death.
void stand_on_our_own() {
  int fd = 0;
  while (fd >= 0 && fd <= 2) fd = ::open("/dev/null", O_RDWR);
  if (fd > 2) ::close(fd);
  ::signal(SIGXFSZ, SIG_IGN);
  // Executed by /proc/self/exe it would be called "exe".
  ::prctl(PR_SET_NAME, "migrate");
}

}  // namespace

int main(int argc, char** argv) {
  stand_on_our_own();
  try {
    // Guardians and keepers are this program executed again; their arguments are not for people.
    if (argc >= 2 && std::string_view(argv[1]).starts_with("guardian-")) return migrate::run_guardian(argc, argv);
    if (argc == 4 && std::string_view(argv[1]) == "track-keeper") return migrate::cli::run_track_keeper(argv);
    return migrate::cli::run_command_line(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "migrate: " << migrate::sentence_of(e) << "\n";
    if (const auto* all = dynamic_cast<const migrate::AllRefusals*>(&e))
      for (const migrate::Refusal& other : all->others()) std::cerr << "migrate: " << other.what() << "\n";
    return dynamic_cast<const migrate::Refusal*>(&e) != nullptr ? 2 : 1;
  }
}
