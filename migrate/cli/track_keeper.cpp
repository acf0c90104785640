#include "migrate/cli/track_keeper.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <memory>
#include <optional>

#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/memory/dirty_tracker.h"
#include "migrate/cli/track_wire.h"

namespace migrate::cli {
namespace {

using Kind = TrackMessage::Kind;

constexpr std::chrono::seconds kPatience(30);  // for the rest of a message that has begun

bool same_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == ::geteuid();
}

/// With whatever options: to be told to dump without a pre-dump helps nobody then.
void refuse_what_no_dump_takes(Pid root, Logger& log) {
  DumpOptions any;
  any.root = root;
  any.shell_job = any.tcp_close = any.ext_unix_sk = any.link_remap = any.file_locks = true;
  any.advice = Advice::all;
  any.ghost_limit = UINT64_MAX;
  Dump::preflight(any, log);
}

/// The tracker and what is known of the folder that its last round stands in.
class Keeper {
 public:
  Keeper(Pid root, Logger& log) : root_(root), log_(log) {}

  /// Serves one command until it leaves. False: the keeping has an end.
  bool serve(PacketSocket& client, int pidfd);

 private:
  void round(PacketSocket& client, const TrackMessage& request);
  void last(PacketSocket& client, const TrackMessage& request);
  /// Why `folder` is not what the tracker's last round stands in; empty if it is.
  std::string unrelated(const std::string& folder) const;
  PagesByMemory unchanged(const DirtyTracker::Round& round) const;
  /// Nothing counts as stored.
  void begin_anew();

  Pid root_;
  Logger& log_;
  std::unique_ptr<DirtyTracker> tracker_;
  std::string folder_;                             ///< run id; empty: nothing was stored yet
  PagesByMemory stored_;                           ///< what it and its parents have
  std::optional<DirtyTracker::Round> open_round_;  ///< given out, not yet stored
};

std::string Keeper::unrelated(const std::string& folder) const {
  if (folder.empty()) return "the previous folder is none that a pre-dump wrote";
  if (folder_.empty()) return "nothing was tracked since the previous folder was written";
  if (folder != folder_) return "the previous folder is not the one that the last pre-dump wrote";
  return {};
}

void Keeper::begin_anew() {
  for (const auto& [memory, runs] : stored_) tracker_->forget(memory);
  stored_.clear();
  folder_.clear();
}

/// What stands in the folder and was neither written since nor has vanished.
PagesByMemory Keeper::unchanged(const DirtyTracker::Round& round) const {
  PagesByMemory out;
  std::map<MemoryId, PageSet> gone;  // or sent
  for (const PageDiscard& d : round.discards) gone[d.memory].append(d.address, d.address + d.pages * kPageSize);
  for (const PageSource& source : round.sources) gone[source.memory] = gone[source.memory] | pages_of(source.runs);
  for (const TreeLayout::Task& task : round.layout.tasks) {
    const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(task.pid)};
    const auto had = stored_.find(memory);
    if (had == stored_.end()) continue;
    PageSet exists;
    for (const TreeLayout::Area& area : task.areas) exists.append(area.start, area.end);
    PageSet pages = (had->second & exists) - gone[memory];
    if (!pages.empty()) out.emplace(memory, std::move(pages));
  }
  return out;
}

void Keeper::round(PacketSocket& client, const TrackMessage& request) {
  if (!tracker_) {
    const auto mappings = MappingReader::shared();
    if (const std::string why = DirtyTracker::cannot_track(root_, *mappings); !why.empty()) {
      refuse_what_no_dump_takes(root_, log_);
      throw Refusal(why, "dump it without a pre-dump");
    }
    tracker_ = std::make_unique<DirtyTracker>(
        DirtyTracker::Options{
            .root = root_, .timeout = std::chrono::milliseconds(request.timeout_ms), .mappings = mappings},
        log_);
  }
  TrackMessage reply{.kind = Kind::pages, .folder = request.folder};
  reply.sentence = unrelated(request.folder);
  if (!reply.sentence.empty()) begin_anew();
  open_round_ = tracker_->next_round();
  // Shared objects are the last round's business: their writers are not all seen.
  std::erase_if(open_round_->sources, [](const PageSource& s) { return s.memory.kind == MemoryId::Kind::shmem; });
  reply.pages = unchanged(*open_round_);
  send_message(client, reply);
  send_sources(client, open_round_->sources);
}

void Keeper::last(PacketSocket& client, const TrackMessage& request) {
  std::vector<PageSource> all = receive_sources(client, Deadline::in(kPatience));
  TrackMessage reply{.kind = Kind::pages, .folder = request.folder};
  reply.sentence = tracker_ ? unrelated(request.folder) : "nothing is tracked yet";
  if (reply.sentence.empty()) {
    PagesByMemory exists;
    for (const PageSource& source : all)
      if (source.memory.kind == MemoryId::Kind::task) exists.emplace(source.memory, pages_of(source.runs));
    tracker_->last_round(all);
    for (const PageSource& source : all)
      if (const auto e = exists.find(source.memory); e != exists.end()) e->second = e->second - pages_of(source.runs);
    for (auto& [memory, pages] : exists) {
      const auto had = stored_.find(memory);
      if (had != stored_.end()) reply.pages.emplace(memory, pages & had->second);
    }
  }
  send_message(client, reply);
}

bool Keeper::serve(PacketSocket& client, int pidfd) {
  bool going_on = true;
  try {
    for (;;) {
      std::array<pollfd, 2> p{pollfd{client.fd(), POLLIN, 0}, pollfd{pidfd, POLLIN, 0}};
      if (::poll(p.data(), p.size(), -1) < 0 && errno != EINTR) throw Error("wait for", "a command", errno);
      if (p[0].revents == 0 && p[1].revents != 0) return false;
      if (p[0].revents == 0) continue;
      const TrackMessage request = receive_message(client, Deadline::in(kPatience));
      if (request.kind == Kind::round) {
        round(client, request);
      } else if (request.kind == Kind::stored && open_round_) {
        folder_ = request.folder;
        stored_ = request.pages;
        open_round_.reset();
        send_message(client, {.kind = Kind::done});
      } else if (request.kind == Kind::last) {
        going_on = false;  // whatever comes of it
        last(client, request);
      } else if (request.kind == Kind::end) {
        return false;
      } else {
        throw Corrupt("a message to the tracking keeper", "it makes no sense now");
      }
    }
  } catch (const GuardianGone&) {  // the command has left
  } catch (const Refusal& e) {
    const std::string sentence = e.what();
    const size_t cut = sentence.find("; ");
    try {
      send_message(client, {.kind = Kind::failed,
                            .sentence = sentence.substr(0, cut),
                            .remedy = cut == std::string::npos ? "see the log" : sentence.substr(cut + 2)});
    } catch (const Error&) {
    }
  } catch (const Error& e) {
    try {
      send_message(client, {.kind = Kind::failed, .sentence = e.what()});
    } catch (const Error&) {
    }
  }
  if (open_round_) {
    tracker_->put_back(*open_round_);
    open_round_.reset();
  }
  // A tracker whose pages nobody ever stored is of no use.
  return going_on && !folder_.empty();
}

void remove_socket(pid_t root) {
  ::unlink((std::string(kTrackFolder) + "/" + track_socket_name(root)).c_str());
  ::rmdir(kTrackFolder);  // unless somebody else is in it
}

}  // namespace

std::string track_socket_name(pid_t root) {
  struct stat st {};
  check(::stat("/proc/self/ns/pid", &st), "stat", "our pid namespace");
  return "track-" + std::to_string(st.st_ino) + "-" + std::to_string(root) + ".sock";
}

int run_track_keeper(const TrackKeeperOptions& options, Logger& log) {
  const Fd listener(options.listener);
  const auto pidfd = open_pidfd(options.root);
  if (!pidfd) {
    remove_socket(options.root);
    return 1;
  }
  auto keeper = std::make_unique<Keeper>(Pid(options.root), log);
  const auto idle = std::chrono::duration_cast<std::chrono::milliseconds>(options.idle);
  for (;;) {
    std::array<pollfd, 2> p{pollfd{listener.get(), POLLIN, 0}, pollfd{pidfd->get(), POLLIN, 0}};
    const int n = ::poll(p.data(), p.size(), static_cast<int>(idle.count()));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0 || p[1].revents != 0) break;
    Fd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket || !same_user(socket.get())) continue;
    PacketSocket client(std::move(socket));
    if (keeper->serve(client, pidfd->get())) continue;
    // Nobody shall find us any more; and whoever waits for the end of the connection sees the tree untracked.
    remove_socket(options.root);
    keeper.reset();
    return 0;
  }
  remove_socket(options.root);
  return 0;
}

}  // namespace migrate::cli
