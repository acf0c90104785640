// The receiver: a daemon on one event loop that accepts connections, serves strangers side by side, and starts a
// process for each peer that has shown who it is.
#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cstring>

#include "core/base/features.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/freeze/named_cgroup.h"
#include "migrate/session/base/session.h"
#include "migrate/session/destination/connection.h"
#include "migrate/session/destination/receive_context.h"
#include "migrate/session/destination/serving.h"
#include "migrate/session/destination/strangers.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/loop/event_loop.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/failure.h"

namespace migrate {
namespace {

/// Connections accepted in one turn of the loop: others get their turn in between.
constexpr int kAcceptAtOnce = 32;
/// Before accept(2) is tried again when descriptors or memory are short.
constexpr std::chrono::milliseconds kShortOfRoom{100};
/// When all places of strangers are taken by some that have just come.
constexpr std::chrono::milliseconds kStrangersSpeak{20};
/// Refusals of strangers that are told, a second; a flood must not fill a disk.
constexpr unsigned kRefusalsTold = 10;

/// SIGINT, SIGTERM and SIGHUP, blocked, as a descriptor.
Fd end_signals() {
  const sigset_t set = block_end_signals();
  return Fd(check(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "watch", "signals"));
}

class Receiver {
 public:
  Receiver(const ReceiveOptions& options, Events& events, Logger& log)
      : options_(options),
        events_(events),
        log_(log),
        signals_(end_signals()),
        connector_(options.link),
        listener_(parse_host_port(options.listen, true)),
        serving_(loop_, {.migrations = options.max_sessions},
                 {.serve =
                      [this](std::unique_ptr<Stream> stream, Fd link) {
                        return serve_connection(options_, connector_, std::move(stream), std::move(link), log_);
                      },
                  .ended = [this](bool migration, std::optional<int> code) { ended(migration, code); }},
                 log),
        strangers_(loop_, connector_, {},
                   {.admit = [this](const std::string& name) { return serving_.admit(name); },
                    .authenticated = [this](std::unique_ptr<Stream> stream) { start(std::move(stream)); },
                    .page_stream = [this](const StreamToken& token,
                                          Fd socket) { serving_.pass_stream(token, std::move(socket)); },
                    .refused = [this](const std::string& why) { tell_refused(why); }},
                   log) {}

  int run() {
    settle();
    FreezerCgroup::own_folder();  // refused now, not when a tree is half here
    check_root();
    const std::string cgroup = check_cgroup();
    if (options_.link.insecure && !options_.link.insecure_forced && !listener_.loopback_only()) {
      throw Refusal("--insecure listens on loopback addresses only", "use certificates, or listen on 127.0.0.1");
    }
    if (!cgroup.empty()) events_.event("cgroup", cgroup);
    tell_listening();
    listen();
    const EventLoop::Watch signals = loop_.when_readable(signals_.get(), [this] { interrupted(); });
    loop_.run();
    return code_;
  }

 private:
  void settle() {
    JournalStore store(options_.state_dir);
    const std::unique_ptr<TreeKeeper> keeper = cgroup_keeper(log_);
    settle_local(store, *keeper, options_.timeouts, events_, log_);
  }

  /// Nobody could send anything to a folder that is not there.
  void check_root() const {
    if (options_.root.empty()) return;
    const Fd root(::open(options_.root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root) throw Refusal("--root " + options_.root + ": " + std::strerror(errno), "name a folder that is there");
  }

  /// Refused now, not when a tree is half here. Where programs will be.
  std::string check_cgroup() const {
    if (!options_.cgroup) return {};
    const NamedCgroup found = find_named_cgroup(*options_.cgroup, options_.allow_uids);
    try_named_cgroup(found);
    std::string text = "what is received is put into";
    for (const std::string& folder : found.folders) text += " " + folder;
    if (found.without.empty()) return text;
    text += "; it is where this receiver is in";
    for (const std::string& point : found.without) text += " " + point;
    return text + ", which have no " + *options_.cgroup;
  }

  void tell_listening() {
    events_.event("listening", "listening on " + options_.listen + " (port " + std::to_string(listener_.port()) + ")",
                  {{"port", int64_t{listener_.port()}}});
    const std::string trust = who_is_taken(options_.link);
    if (!trust.empty()) events_.event("trust", trust);
    signal_status(options_.status_fd);
  }

  void listen() {
    listening_.clear();
    pause_ = {};
    for (const int fd : listener_.fds()) listening_.push_back(loop_.when_readable(fd, [this, fd] { accept(fd); }));
  }

  void accept(int listening) {
    for (int i = 0; i < kAcceptAtOnce; ++i) {
      if (!strangers_.room()) return pause(kStrangersSpeak);
      int error = 0;
      Fd socket = Listener::try_accept(listening, error);
      if (socket) {
        strangers_.add(std::move(socket));
      } else if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
        return wait_for_room(error);
      } else if (error == EAGAIN) {
        short_of_room_ = false;
        return;
      }
    }
  }

  /// The listener's queue keeps who comes meanwhile.
  void pause(std::chrono::milliseconds time) {
    listening_.clear();
    pause_ = loop_.after(time, [this] { listen(); });
  }

  /// Who is not known yet goes first.
  void wait_for_room(int error) {
    if (!short_of_room_) log_.warn("{}; trying again", Error("accept", "a connection", error).what());
    short_of_room_ = true;
    strangers_.drop_oldest();
    pause(kShortOfRoom);
  }

  void start(std::unique_ptr<Stream> stream) {
    const std::string peer = stream->peer();
    try {
      std::vector<int> keep;
      if (options_.status_fd >= 0) keep.push_back(options_.status_fd);
      serving_.start(std::move(stream), std::move(keep));
    } catch (const Error& e) {  // no process, no descriptor; the peer sees a cut, and may try again
      events_.event("refused", peer + ": " + e.what());
    }
  }

  void tell_refused(const std::string& why) {
    if (++refusals_told_ <= kRefusalsTold) events_.event("refused", why);
    if (!refusals_pause_)
      refusals_pause_ = loop_.after(std::chrono::seconds(1), [this] {
        refusals_told_ = 0;
        refusals_pause_ = {};
      });
  }

  void ended(bool migration, std::optional<int> code) {
    const bool counts = migration && (!code || (*code != kRefused && *code != kQuestionAnswered));
    if (counts) code_ = code.value_or(kFailed);
    served_ |= counts;
    // Its copy may need us for long, but nobody else does.
    if (options_.once && served_)
      serving_.take_no_more("it was started for one migration (--once) and has had that; start another receiver");
    if (!migration && served_ && code == kMoved) code_ = kMoved;  // its source came again
    if (options_.once && served_ && !leaving_ && !source_may_come_again()) leave();
    if (leaving_ && serving_.empty()) loop_.stop();
  }

  /// Of a copy that needs its pages; or that has them, of which only we can tell it, so that its frozen tree goes.
  bool source_may_come_again() const {
    try {
      const std::vector<JournalEntry> all = JournalStore(options_.state_dir).list();
      return std::any_of(all.begin(), all.end(), [](const JournalEntry& e) {
        return e.role == Role::destination && e.lazy && (e.state == State::gate_open || e.state == State::whole) &&
               e.boot_id == boot_id();
      });
    } catch (const Error& e) {
      log_.warn("{}", e.what());
      return false;
    }
  }

  void interrupted() {
    signalfd_siginfo info;
    if (::read(signals_.get(), &info, sizeof info) != sizeof info) return;
    if (!leaving_) code_ = options_.once ? kFailed : kMoved;
    serving_.terminate();
    if (!leaving_ && !serving_.empty())
      events_.event("ending",
                    "told to end: what is under way is given up, but for programs that run here already, whose memory "
                    "still comes; it ends with the last of them");
    leave();
    if (serving_.empty()) loop_.stop();
  }

  void leave() {
    leaving_ = true;
    listening_.clear();
    pause_ = {};
  }

  const ReceiveOptions& options_;
  Events& events_;
  Logger& log_;
  EventLoop loop_;
  Fd signals_;
  Connector connector_;
  Listener listener_;
  ServingProcesses serving_;
  Strangers strangers_;
  std::vector<EventLoop::Watch> listening_;
  EventLoop::Watch pause_, refusals_pause_;
  bool short_of_room_ = false, leaving_ = false;
  bool served_ = false;  ///< a migration
  unsigned refusals_told_ = 0;
  int code_ = kFailed;
};

}  // namespace

int run_receive(const ReceiveOptions& options, Logger& log) {
  PrintedEvents events(options.report, "receive");
  try {
    demand_capabilities();
    ReceiveOptions adjusted = options;
    adjusted.timeouts = with_test_timeouts(options.timeouts);
    if (options.once) adjusted.max_sessions = 1;
    return Receiver(adjusted, events, log).run();
  } catch (const std::exception& e) {
    return tell_failure(events, e);
  }
}

}  // namespace migrate
