#include <cstdlib>
#include <cstring>

#include "migrate/session/base/session.h"
#include "migrate/session/guardian/background.h"
#include "migrate/session/guardian/guardian.h"
#include "migrate/session/guardian/huge_again.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/lazy/lazy_host_main.h"

namespace migrate {
namespace {

GuardianParts real_guardian_parts(Logger& log) {
  GuardianParts parts;
  parts.held_tree = [&log](const DumpOptions& options) { return dump_tree(options, log); };
  parts.restored_tree = [&log](RestoreOptions options) { return restore_tree(std::move(options), log); };
  parts.keeper = cgroup_keeper(log);
  parts.lazy_host = [](PacketSocket& end, const Fd& listener, const wire::GuardianRequest::StartDestination& start) {
    std::vector<std::string> words{"migrate", "guardian-lazy", start.state_dir(), start.session(), start.peer_name()};
    words.insert(words.end(), start.link().begin(), start.link().end());
    const std::vector<char*> argv = argv_of(words);
    if (check(::fork(), "start", "the lazy host") == 0) execute_in_background({end.fd(), listener.get()}, argv.data());
  };
  parts.watch = [](const wire::GuardianRequest::StartSource& start, const SessionId& id) {
    const std::optional<Fd> self = open_pidfd(::getpid());
    if (!self) throw Error("open", "our own pidfd", errno);
    std::vector<std::string> words(start.link().begin(), start.link().end());
    return std::make_shared<SessionWatch>(start.state_dir(), id, Role::source, self->get(), words);
  };
  parts.huge_again = start_huge_again;
  return parts;
}

}  // namespace

int run_guardian(int argc, char** argv) {
  const LogLevel level = ::getenv("MIGRATE_DEBUG") != nullptr ? LogLevel::debug : LogLevel::warn;
  const bool threads = argc > 1 && std::strcmp(argv[1], "guardian-lazy") == 0;
  const LoggerPtr logger = stderr_logger({"guardian", "%n: %v", level}, threads);
  Logger& log = *logger;
  if (argc > 1 && std::strcmp(argv[1], "guardian-watch") == 0) return run_watch(argc, argv, log);
  if (threads) return run_lazy_host(argc, argv, log);
  if (argc > 1 && std::strcmp(argv[1], "guardian-huge") == 0) return run_huge_again(argc, argv, log);
  if (argc != 3) return kRefused;
  const bool source = std::strcmp(argv[1], "guardian-source") == 0;
  if (!source && std::strcmp(argv[1], "guardian-destination") != 0) return kRefused;
  PacketSocket agent(Fd(std::atoi(argv[2])));
  ::fcntl(agent.fd(), F_SETFD, FD_CLOEXEC);
  const GuardianParts parts = real_guardian_parts(log);
  return source ? serve_source_guardian(std::move(agent), parts, log)
                : serve_destination_guardian(std::move(agent), parts, log);
}

}  // namespace migrate
