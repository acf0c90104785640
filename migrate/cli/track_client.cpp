#include "migrate/cli/track_client.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>

#include "migrate/cli/track_keeper.h"
#include "migrate/session/guardian/background.h"

namespace migrate::cli {
namespace {

using Kind = TrackMessage::Kind;

// A round visits new tasks and scans; a last round scans, while the tree is stopped.
constexpr std::chrono::minutes kAnswerPatience(5);
constexpr std::chrono::seconds kLastPatience(30);

/// The folder of the keepers' sockets, root's alone. nullopt: it does not exist.
std::optional<Fd> track_folder() {
  const int fd = ::open(kTrackFolder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return std::nullopt;
  Fd folder(check(fd, "open", kTrackFolder));
  struct stat st {};
  check(::fstat(fd, &st), "stat", kTrackFolder);
  if (st.st_uid != ::geteuid() || (st.st_mode & 077) != 0)
    throw Refusal(std::string("the folder ") + kTrackFolder + " is open to others than its user", "remove it");
  return folder;
}

Fd seqpacket_socket() {
  return Fd(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make", "a Unix socket"));
}

sockaddr_un address_of(pid_t root) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = std::string(kTrackFolder) + "/" + track_socket_name(root);
  if (path.size() >= sizeof address.sun_path) throw Error("use the socket", path, ENAMETOOLONG);
  path.copy(address.sun_path, path.size());
  return address;
}

/// nullopt: nobody listens there.
std::optional<Fd> connect_to(pid_t root) {
  Fd socket = seqpacket_socket();
  const sockaddr_un address = address_of(root);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return socket;
  if (errno == ENOENT || errno == ECONNREFUSED) return std::nullopt;
  throw Error("connect to", address.sun_path, errno);
}

/// nullopt: somebody was faster.
std::optional<Fd> listen_for(pid_t root) {
  if (::mkdir(kTrackFolder, 0700) < 0 && errno != EEXIST) throw Error("make", kTrackFolder, errno);
  if (!track_folder()) return std::nullopt;
  Fd socket = seqpacket_socket();
  const sockaddr_un address = address_of(root);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    if (errno == ENOENT) return std::nullopt;  // a keeper that ended took the folder with it
    if (errno != EADDRINUSE) throw Error("bind", address.sun_path, errno);
    if (!connect_to(root)) ::unlink(address.sun_path);  // of a keeper that was killed
    return std::nullopt;
  }
  check(::listen(socket.get(), 8), "listen on", address.sun_path);
  return socket;
}

/// Through a child that ends at once, so that the keeper is nobody's zombie.
void start_keeper(pid_t root, const Fd& listener, std::chrono::seconds idle) {
  const std::string pid_text = std::to_string(root), idle_text = std::to_string(idle.count());
  std::string program = "migrate", verb = "track-keeper", fd_text = "3";
  std::string pid_copy = pid_text, idle_copy = idle_text;
  char* const argv[] = {program.data(), verb.data(), pid_copy.data(), idle_copy.data(), nullptr};
  const pid_t child = check(::fork(), "start", "the tracking keeper");
  if (child == 0) {
    if (::fork() != 0) ::_exit(0);
    // Its errors go to its clients; a terminal shall not be held open by it.
    const int null = ::open("/dev/null", O_WRONLY);
    if (null >= 0) ::dup2(null, 2);
    if (::chdir("/") != 0) ::_exit(127);
    execute_in_background({listener.get()}, argv);
  }
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

std::optional<TrackClient> TrackClient::find(pid_t root) {
  if (!track_folder()) return std::nullopt;
  auto socket = connect_to(root);
  if (!socket) return std::nullopt;
  return TrackClient(PacketSocket(std::move(*socket)));
}

TrackClient TrackClient::find_or_start(pid_t root, std::chrono::seconds idle) {
  constexpr int kTries = 20;
  for (int i = 0; i < kTries; ++i) {
    if (auto client = find(root)) return std::move(*client);
    if (const auto listener = listen_for(root)) start_keeper(root, *listener, idle);
  }
  throw Error("start", "the tracking keeper of task " + std::to_string(root), EAGAIN);
}

TrackMessage TrackClient::answer(Kind expected, std::chrono::milliseconds patience) {
  TrackMessage m = receive_message(socket_, Deadline::in(patience));
  if (m.kind == Kind::failed) {
    if (!m.remedy.empty()) throw Refusal(m.sentence, m.remedy);
    throw Error(m.sentence);
  }
  if (m.kind != expected) throw Corrupt("the tracking keeper's answer", "it makes no sense");
  return m;
}

TrackClient::Pages TrackClient::round(const std::string& previous, std::chrono::milliseconds timeout) {
  send_message(socket_,
               {.kind = Kind::round, .folder = previous, .timeout_ms = static_cast<uint64_t>(timeout.count())});
  TrackMessage m = answer(Kind::pages, kAnswerPatience);
  Pages pages{.sources = receive_sources(socket_, Deadline::in(kAnswerPatience)),
              .unchanged = std::move(m.pages),
              .full = std::move(m.sentence)};
  for (PageSource& source : pages.sources) source.may_vanish = true;
  for (const auto& [memory, runs] : pages.unchanged) {
    if (std::ranges::find(pages.sources, memory, &PageSource::memory) == pages.sources.end())
      pages.sources.push_back({.memory = memory, .runs = {}, .fd = Fd(), .may_vanish = true});
  }
  return pages;
}

void TrackClient::stored(const std::string& folder, const PagesByMemory& pages) {
  send_message(socket_, {.kind = Kind::stored, .folder = folder, .pages = pages});
  answer(Kind::done, kAnswerPatience);
}

TrackClient::Pages TrackClient::last(const std::string& previous, std::vector<PageSource>&& all) {
  Pages pages{.sources = std::move(all), .unchanged = {}, .full = {}};
  TrackMessage m;
  try {
    send_message(socket_, {.kind = Kind::last, .folder = previous});
    send_sources(socket_, pages.sources);
    m = answer(Kind::pages, kLastPatience);
  } catch (const GuardianGone&) {
    m.sentence = "the process that tracked it is gone";
  }
  pages.full = std::move(m.sentence);
  for (PageSource& source : pages.sources) {
    const auto unchanged = m.pages.find(source.memory);
    if (unchanged != m.pages.end()) source.runs = runs_without(source.runs, unchanged->second);
  }
  pages.unchanged = std::move(m.pages);
  return pages;
}

void TrackClient::end() {
  try {
    send_message(socket_, {.kind = Kind::end});
    receive_message(socket_, Deadline::in(std::chrono::minutes(1)));
  } catch (const GuardianGone&) {  // that is its answer
  }
}

}  // namespace migrate::cli
