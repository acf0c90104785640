#include "migrate/session/lazy/lazy_host_main.h"

#include <fcntl.h>
#include <unistd.h>

#include <span>

#include "lazypages/lazy_host.h"
#include "migrate/session/base/session.h"
#include "migrate/session/journal/journal.h"
#include "migrate/session/lazy/lazy_server.h"
#include "migrate/session/wire/link_words.h"

namespace migrate {

int run_lazy_host(int argc, char** argv, Logger& log) {
  constexpr int kGuardianFd = 3, kListenerFd = 4;
  if (argc < 5) return kRefused;
  const std::optional<SessionId> id = session_from_hex(argv[3]);
  if (!id) return kRefused;
  LazyServerOptions settings{.session = *id,
                             .peer_name = argv[4],
                             .link = link_from_words(std::span(argv, static_cast<size_t>(argc)).subspan(5)),
                             .timeouts = with_test_timeouts({})};
  HoldOptions options;
  options.say = [&log](const std::string& sentence) { log.warn("{}", sentence); };
  options.kept.emplace("listener", Fd(kListenerFd));
  options.kept.emplace("guardian", Fd(kGuardianFd));
  settings.path = std::string(argv[2]) + "/" + to_hex(*id) + ".lazy";
  hold_lazily(std::move(options), [&](LazyHost& host) { LazyServer(host, settings, log).run(); });
}

}  // namespace migrate
