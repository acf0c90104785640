#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "core/files/hidden_sockets.h"
#include "core/freeze/named_cgroup.h"
#include "migrate/session/guardian/destination_guardian.h"
#include "migrate/session/guardian/guardian_common.h"
#include "migrate/session/guardian/task_limit.h"
#include "migrate/session/journal/lazy_cgroups.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/missing_wire.h"
#include "migrate/session/wire/reserve_wire.h"
#include "migrate/session/wire/tree_options_wire.h"

namespace migrate {

using std::chrono::milliseconds;
using wire::GuardianReply;
using wire::GuardianRequest;

namespace {

/// How long the first move behind the gate is prepared for: the source notes what its tree has meanwhile.
constexpr milliseconds kShellsCome{200};
/// How long the processes of a lazy host may take for it, on a busy machine.
constexpr milliseconds kHostLeaves{5'000};

}  // namespace

int DestinationGuardian::run() {
  try {
    for (bool goes_on = start(); goes_on; goes_on = serve_one()) {
    }
  } catch (const std::exception& e) {
    log_.error("the destination's guardian: {}", e.what());
    discard(kOwn, e.what());
  }
  if (!store_ || !journal_) return 0;
  ::unlink(store_->socket_path(journal_->id()).c_str());
  // It was told to leave; its agent has its answer, and waits for our end only.
  if (discarded_ || is_final(journal_->state()) || journal_->state() == State::whole)
    remove_lazy_cgroups(journal_->entry(), kHostLeaves, log_);
  return 0;
}

bool DestinationGuardian::start() {
  const std::optional<GuardianRequest> request = await_start(*agent_);
  if (!request) return false;
  const GuardianRequest::StartDestination& s = request->start_destination();
  try {
    JournalEntry entry = first_entry(Role::destination, s);
    options_.own_namespaces = true;
    static_cast<TreeOptions&>(options_) = from_wire(s.tree());
    options_.root = s.root();
    policy_ = policy_from_wire(s);
    max_tasks_ = s.max_tasks();
    // Looked at again: a user that it is delegated to may have changed it since the receiver began.
    if (s.has_cgroup()) options_.cgroups = find_named_cgroup(s.cgroup(), policy_.allow_uids).folders;
    // Who is bound to some users must not get other users' files through us.
    options_.files_by_root = policy_.allow_uids.empty();
    options_.timeout = milliseconds(s.timeout_ms());
    options_.clocks = RestoreOptions::Clocks{s.monotonic_ns(), s.boottime_ns(), s.at_local_monotonic_ns()};
    entry.peer_name = s.peer_name();
    entry.peer_epoch = s.peer_epoch();
    LazyCgroups lazy_cgroups;
    if (s.lazy()) lazy_cgroups = plan_lazy_cgroups(entry.id);
    entry.lazy_cgroups = lazy_cgroups.folders;
    store_.emplace(s.state_dir());
    journal_.emplace(store_->create(std::move(entry)));
    options_.mark = journal_->entry().hidden_mark();
    options_.lazy = s.lazy();
    // Already here, while the source runs, since it has to be durable before anything is put into it.
    tree_ = parts_.restored_tree(options_);
    const FreezerCgroup::Record gate = tree_->make_gate(cgroup_name(journal_->id(), Role::destination));
    lazy_cgroups = make_lazy_cgroups(std::move(lazy_cgroups));
    // Prepared meanwhile, also for the lazy host's; until it is, no cgroup can be made (cgroup_mutex).
    quick_moves_.emplace(kShellsCome);
    journal_->update([&](JournalEntry& e) {
      e.cgroup = gate;
      e.lazy_cgroups = lazy_cgroups.folders;
    });
    journal_->demand_durable();
    if (s.lazy()) start_lazy_host(s, lazy_cgroups.without);
  } catch (const Error& e) {
    discard(kOwn, e.what());
    reply_failed(*agent_, e);
    return false;
  }
  fault_point("destination-guardian.started");
  reply_started(*agent_, journal_->entry().epoch);
  return true;
}

void DestinationGuardian::start_lazy_host(const GuardianRequest::StartDestination& s, const std::string& without) {
  if (!parts_.lazy_host) throw Refusal("pages cannot come late here", "move it with --mode precopy");
  if (!without.empty())
    log_.warn("the processes that bring pages are not apart from the receiver in every hierarchy of cgroups: {}",
              without);
  auto [ours, theirs] = PacketSocket::pair();
  // Agents may come before it is there.
  parts_.lazy_host(theirs, listen_local(store_->lazy_path(journal_->id())), s);
  lazy_.emplace(std::move(ours));
}

/// Waits for the agent, or, when there is none, for one that connects.
bool DestinationGuardian::serve_one() {
  constexpr int kAcceptAgain = 50;  // ms, when descriptors or memory were short
  std::array<pollfd, 3> p{pollfd{agent_ ? agent_->fd() : -1, POLLIN, 0},
                          pollfd{accept_later_ ? -1 : listener_.get(), POLLIN, 0},
                          pollfd{lazy_ ? lazy_->fd() : -1, POLLIN, 0}};
  const int n = ::poll(p.data(), p.size(), accept_later_ ? kAcceptAgain : -1);
  accept_later_ = false;
  if (n < 0 && errno != EINTR) throw Error("wait for", "an agent", errno);
  if (n <= 0) return true;
  if (p[2].revents != 0) lazy_news();
  if (is_final(journal_->state()) || (journal_->state() == State::whole && !agent_)) return false;
  if (p[1].revents != 0) {
    Fd next(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    accept_later_ = !next;
    if (next) agent_.emplace(std::move(next));
    return true;
  }
  if (p[0].revents == 0) return true;
  GuardianRequest request;
  if (agent_->receive(request, Deadline::in(milliseconds(0))) == PacketSocket::Outcome::closed) return agent_gone();
  try {
    return serve(request);
  } catch (const GuardianGone&) {
    return agent_gone();
  }
}

bool DestinationGuardian::serve(const GuardianRequest& request) {
  try {
    switch (request.body_case()) {
      case GuardianRequest::kAlive:
        return true;
      case GuardianRequest::kLayout:
        warm();
        return true;
      case GuardianRequest::kDiscards:
        discard_pages();
        return true;
      case GuardianRequest::kReserve:
        reserve_pages();
        return true;
      case GuardianRequest::kMemory:
        tell_memory();
        return true;
      case GuardianRequest::kHuge:
        add_from_wire(receive_message<wire::Discards>(), huge_);
        return true;
      case GuardianRequest::kPrepare:
        prepare();
        return true;
      case GuardianRequest::kFinish:
        finish();
        return true;
      case GuardianRequest::kOpen:
        return open(request.open());
      case GuardianRequest::kAbort:
        return abort(request.abort());
      case GuardianRequest::kWhole:
        whole_wanted_ = true;
        tell_whole();
        return true;
      case GuardianRequest::kDone:
        return done();
      default:
        throw Error("serve", "an unknown request of the agent", EPROTO);
    }
  } catch (const GuardianGone&) {
    throw;
  } catch (const Error& e) {
    // Before it was prepared a failure ends the session. Later the journal says how it stands, and the agent may ask.
    if (journal_->state() == State::receiving) discard(kOwn, e.what());
    if (!reply_failed(*agent_, e)) return agent_gone();
    return !is_final(journal_->state());
  }
}

void DestinationGuardian::prepare() {
  images_ = decode_images(agent_->receive_blob(Deadline::in(options_.timeout)));
  enforce_task_limit(max_tasks_, images_);
  enforce_identity(policy_, images_);
  note_hidden_sockets();
  await_quick_moves();
  const Room room = tree_->prepare(images_);
  note_init();
  fault_point("destination-guardian.shells");
  reply_room(room);
}

/// While the tree runs at the source: shells and memory for what it has now.
void DestinationGuardian::warm() {
  LayoutParts parts;
  if (!parts.add(receive_message<wire::Layout>())) throw Error("receive", "a layout of the agent", EPROTO);
  const TreeLayout layout = parts.take();
  enforce_task_limit(max_tasks_, layout);
  await_quick_moves();
  const Room room = tree_->warm(layout);
  note_init();
  note_place();
  fault_point("destination-guardian.warm");
  reply_room(room);
}

/// The first task is about to be moved behind the gate.
void DestinationGuardian::await_quick_moves() {
  if (quick_moves_) quick_moves_->wait();
  quick_moves_.reset();
}

void DestinationGuardian::discard_pages() {
  tree_->discard_pages(from_wire(receive_message<wire::Discards>()));
  GuardianReply reply;
  reply.set_discarded(true);
  agent_->send(reply);
}

void DestinationGuardian::reserve_pages() {
  tree_->reserve_pages(from_wire(receive_message<wire::Reserve>()));
  fault_point("destination-guardian.reserved");
  GuardianReply reply;
  reply.set_reserved(true);
  agent_->send(reply);
}

void DestinationGuardian::tell_memory() {
  GuardianReply reply;
  reply.set_memory_bytes(tree_ ? tree_->memory_bytes() : 0);
  agent_->send(reply);
}

void DestinationGuardian::reply_room(const Room& room) {
  GuardianReply reply;
  reply.set_targets(true);
  agent_->send(reply);
  send_room(*agent_, room);
}

/// Before there are any: whoever discards the copy removes them.
void DestinationGuardian::note_hidden_sockets() {
  std::vector<std::string> folders = real_folders(unix_socket_folders(images_), options_.root);
  if (folders == journal_->entry().socket_folders) return;
  journal_->update([&](JournalEntry& e) { e.socket_folders = std::move(folders); });
  journal_->demand_durable();
}

/// Whoever discards the copy kills its init first: that would take the gate for opened when the frozen tasks die.
void DestinationGuardian::note_init() {
  const std::optional<TaskId> init = tree_->init();
  if (!init || journal_->entry().init == init) return;
  journal_->update([&](JournalEntry& e) { e.init = init; });
}

/// While the tree runs at the source, if there is a copy by then.
void DestinationGuardian::note_place() {
  if (!lazy_) return;
  const std::optional<TaskId> init = tree_->init();
  const pid_t pid = init ? init->pid : ::getpid();
  if (!place_ || place_->pid() != pid) place_.emplace(pid);
}

/// What comes later must fit when it comes: the program would be killed for it, at a moment when it runs nowhere else.
void DestinationGuardian::check_room(const PagesByMemory& missing) {
  uint64_t pages = 0;
  for (const auto& [memory, set] : missing) pages += set.pages();
  note_place();
  const MemoryRoom room = place_->room();
  if (pages <= room.bytes / kPageSize) return;
  throw Refusal(human_bytes(pages * kPageSize) + " of memory are still to come, and " +
                    (room.where.empty() ? "this host" : "cgroup " + room.where + " here") + " has room for " +
                    human_bytes(room.bytes),
                "make room, or move it elsewhere");
}

void DestinationGuardian::finish() {
  PagesByMemory missing;
  if (lazy_) {
    add_from_wire(receive_message<wire::Discards>(), missing);
    check_room(missing);
  }
  tree_->finish(missing);
  fault_point("destination-guardian.finished");
  // Whoever opens the gate relies on it that missing pages are in the hands of those who bring them.
  if (lazy_) {
    lazy_->hold(tree_->take_lazy_memories(), Deadline::in(options_.timeout));
    fault_point("destination-guardian.lazily-held");
  }
  journal_->step_with(State::prepared, kOwn, "complete, behind its gate", [this](JournalEntry& e) {
    e.lazy = lazy_.has_value();
    e.tasks = tree_->tasks();
    e.init = tree_->init();
  });
  if (!journal_->durable()) {
    // Nobody was told, so it is ours to take back; a disk like this is not to be trusted with GATE_OPEN.
    discard(kPeer, "its journal could not be synced");
    throw Error("sync", "the journal of session " + to_hex(journal_->id()), EIO);
  }
  try {
    // A full disk at the commit would leave the program standing on both sides until somebody makes room.
    journal_->reserve();
  } catch (const Error& e) {
    discard(kPeer, e.what());
    throw;
  }
  fault_point("destination-guardian.prepared");
  listen_for_agents();
  GuardianReply reply;
  reply.set_prepared(static_cast<uint32_t>(journal_->entry().tasks.size()));
  agent_->send(reply);
}

bool DestinationGuardian::abort(const std::string& reason) {
  discard(kPeer, reason);
  note_source_runs(*journal_);
  GuardianReply reply;
  reply.set_aborted(journal_->state() == State::aborted);
  agent_->send(reply);
  return !is_final(journal_->state());
}

/// Before PREPARED nobody can have been told that it is ready; after it, only the source or the operator decides.
bool DestinationGuardian::agent_gone() {
  agent_.reset();
  if (journal_->state() == State::receiving) discard(kOwn, "its agent went away");
  // Pages that are missing keep us: somebody has to write down when none is.
  return listener_ && (journal_->state() == State::prepared || (journal_->state() == State::gate_open && lazy_));
}

void DestinationGuardian::discard(Authority authority, const std::string& reason) {
  if (!journal_ || !legal_step(Role::destination, journal_->state(), State::aborted, authority)) return;
  discarded_ = true;
  try {
    journal_->step(State::aborted, authority, reason);
  } catch (const std::exception& e) {
    // The old state stays on disk; a later agent finds the tree dead, which says the same.
    log_.error("the abort of session {} could not be written: {}", to_hex(journal_->id()), e.what());
  }
  try {
    if (lazy_) lazy_->discard();
  } catch (const GuardianGone&) {
  }
  lazy_.reset();
  try {
    if (tree_) tree_->discard();
  } catch (const std::exception& e) {
    log_.error("discarding the copy: {}", e.what());
  }
  try {
    parts_.keeper->discard(journal_->entry());
  } catch (const std::exception& e) {
    log_.error("discarding the copy: {}", e.what());
  }
  tree_.reset();
}

void DestinationGuardian::listen_for_agents() { listener_ = listen_local(store_->socket_path(journal_->id())); }

int serve_destination_guardian(PacketSocket agent, const GuardianParts& parts, Logger& log) {
  return DestinationGuardian(std::move(agent), parts, log).run();
}

}  // namespace migrate
