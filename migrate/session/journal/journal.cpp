#include "migrate/session/journal/journal.h"

#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "migrate/session/telling/fault.h"
#include "pageserver/rate_limiter.h"

namespace migrate {
namespace {

using nlohmann::json;

constexpr size_t kJournalLimit = 8 << 20;
constexpr const char* kJournal = ".journal";
constexpr const char* kAborted = ".aborted";  ///< a journal whose abort could only be written as its name

std::string file_name(const SessionId& id, Role role, const char* suffix) {
  return to_hex(id) + "." + std::string(name_of(role)) + suffix;
}

int64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_REALTIME, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

/// Opens a lock file and locks it; an empty Fd if another process has it.
Fd lock_file(int dir, const std::string& name) {
  Fd fd = open_at(dir, name, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd.get(), F_SETLK, &lock) != 0) {
    if (errno == EACCES || errno == EAGAIN) return {};
    throw Error("lock", name, errno);
  }
  return fd;
}

/// The process that has a lock file locked, or 0.
pid_t holder_of(int dir, const std::string& name) {
  const Fd fd(::openat(dir, name.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return 0;
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd.get(), F_GETLK, &lock) != 0) return 0;
  return lock.l_type == F_UNLCK ? 0 : lock.l_pid;
}

std::string tree_lock_name(const TaskId& root) {
  return "tree-" + std::to_string(root.pid) + "-" + std::to_string(root.start_time) + ".lock";
}

/// A name in a folder that others use for something else, too: it must not be closed to them. Empty: none.
std::string what_is_not_ours(const std::string& folder) {
  std::string found;
  for_entries(AT_FDCWD, folder, [&](const dirent& e) {
    const std::string name = e.d_name;
    const bool ours = session_from_hex(name.substr(0, name.find('.'))) || name.starts_with("tree-") ||
                      name.starts_with("calibration.json") || name == "lost+found";
    if (!ours && name != "." && name != "..") found = name;
  });
  return found;
}

bool reads_as(int dir, const std::string& name, const std::string& text) {
  try {
    return read_file_at(dir, name, kJournalLimit) == text;
  } catch (const Error&) {
    return false;
  }
}

/// Replaces `name` as a whole; after an exception the old content is still there.
void replace_file(int dir, const std::string& name, const std::string& text) {
  const std::string temporary = name + ".new";
  try {
    const Fd fd = open_at(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
    write_full(fd.get(), as_bytes_of(text), name);
    check(::fsync(fd.get()), "sync", name);
    if (::renameat(dir, temporary.c_str(), dir, name.c_str()) == 0) return;
    const int why = errno;
    // A file server may have done it and failed to say so.
    if (!reads_as(dir, name, text)) throw Error("replace", name, why);
  } catch (...) {
    ::unlinkat(dir, temporary.c_str(), 0);
    throw;
  }
}

JournalEntry read_entry(int dir, const std::string& name) {
  JournalEntry entry = JournalEntry::from_json(read_file_at(dir, name, kJournalLimit), name);
  if (name.ends_with(kAborted)) {
    entry.state = State::aborted;
    entry.reason = "the abort could not be written";
    ++entry.epoch;
  }
  return entry;
}

bool is_there(int dir, const std::string& name) { return ::faccessat(dir, name.c_str(), F_OK, 0) == 0; }

/// "source-journal.gate-open"
std::string sync_point(const JournalEntry& entry) {
  std::string state(name_of(entry.state));
  for (char& c : state) c = c == '_' ? '-' : static_cast<char>(c - 'A' + 'a');
  return std::string(name_of(entry.role)) + "-journal." + state;
}

bool sync_folder(int dir, const JournalEntry& entry) {
  return !fault_asked(sync_point(entry), "sync-fails") && ::fsync(dir) == 0;
}

/// nlohmann cuts what does not fit, and turns negative numbers and fractions into others.
uint64_t number_from_json(const json& j) {
  if (!j.is_number_unsigned()) throw std::out_of_range("a number is not what it should be");
  return j.get<uint64_t>();
}

/// Whoever reads a journal may kill what it names: never 0 or -1, which kill(2) takes for many.
pid_t pid_from_json(const json& j) {
  const uint64_t pid = number_from_json(j);
  if (pid == 0 || pid > uint64_t{kMaxPid}) throw std::out_of_range("a pid is out of range");
  return static_cast<pid_t>(pid);
}

json record_to_json(const FreezerCgroup::Record& record) {
  json from = json::array();
  for (const auto& [pid, folder] : record.came_from) from.push_back({{"pid", pid}, {"folder", folder}});
  return {{"v2", record.v2}, {"folders", record.folders}, {"came_from", from}};
}

FreezerCgroup::Record record_from_json(const json& j) {
  FreezerCgroup::Record record;
  record.v2 = j.at("v2").get<bool>();
  record.folders = j.at("folders").get<std::vector<std::string>>();
  for (const json& one : j.at("came_from")) {
    record.came_from[pid_from_json(one.at("pid"))] = one.at("folder").get<std::string>();
  }
  return record;
}

/// Whoever reads them removes them.
std::vector<std::string> lazy_cgroups_from_json(const json& j, const SessionId& id) {
  constexpr size_t kMost = 64;
  auto folders = j.get<std::vector<std::string>>();
  const std::string mark = "/" + lazy_cgroup_mark(id);
  const bool ours = std::ranges::all_of(folders, [&](const std::string& folder) {
    return folder.starts_with('/') && folder.substr(folder.rfind('/')).starts_with(mark);
  });
  if (!ours || folders.size() > kMost) throw std::out_of_range("a cgroup is not the session's");
  return folders;
}

json ipc_to_json(const IpcObject& o) {
  return {{"kind", static_cast<int>(o.kind)},
          {"id", o.id},
          {"key", o.key},
          {"cuid", o.cuid},
          {"cgid", o.cgid},
          {"changed", o.changed},
          {"size", o.size},
          {"creator", o.creator},
          {"used_a", o.used_a},
          {"used_b", o.used_b}};
}

json lock_to_json(const HeldLock& h) {
  return {{"number", h.number},
          {"device", h.device},
          {"inode", h.inode},
          {"pid", h.pid.get()},
          {"fd", h.fd},
          {"kind", h.lock.kind},
          {"type", h.lock.type},
          {"start", h.lock.start},
          {"length", h.lock.length},
          {"path", h.path}};
}

HeldLock lock_from_json(const json& j) {
  HeldLock h;
  h.number = j.at("number").get<uint32_t>();
  h.pid = Pid(pid_from_json(j.at("pid")));
  h.fd = j.at("fd").get<int>();
  h.lock = {j.at("kind").get<uint32_t>(), j.at("type").get<uint32_t>(), j.at("start").get<int64_t>(),
            j.at("length").get<int64_t>()};
  h.device = number_from_json(j.at("device"));
  h.inode = number_from_json(j.at("inode"));
  h.path = j.at("path").get<std::string>();
  const bool kind = h.lock.kind == kLockPosix || h.lock.kind == kLockFlock || h.lock.kind == kLockDescription;
  const bool type = h.lock.type == F_RDLCK || h.lock.type == F_WRLCK;
  if (!kind || !type || h.fd < 0 || h.lock.start < 0 || h.lock.length < 0)
    throw std::out_of_range("a lock that cannot be");
  return h;
}

IpcObject ipc_from_json(const json& j) {
  IpcObject o;
  const int kind = j.at("kind").get<int>();
  if (kind < 1 || kind > 3) throw std::out_of_range("a System V object of no kind");
  o.kind = static_cast<IpcKind>(kind);
  o.id = j.at("id").get<int>();
  o.key = j.at("key").get<uint32_t>();
  o.cuid = j.at("cuid").get<uint32_t>();
  o.cgid = j.at("cgid").get<uint32_t>();
  o.changed = j.at("changed").get<int64_t>();
  o.size = j.at("size").get<uint64_t>();
  o.creator = j.at("creator").get<pid_t>();
  o.used_a = j.at("used_a").get<int64_t>();
  o.used_b = j.at("used_b").get<int64_t>();
  return o;
}

json feed_to_json(const FeedSettings& feed) {
  json codecs = json::array();
  if (feed.codecs.lz4) codecs.push_back("lz4");
  if (feed.codecs.zstd) codecs.push_back("zstd");
  return {{"bandwidth_limit", feed.bandwidth_limit},
          {"compress", text_of(feed.compression)},
          {"codecs", codecs},
          {"streams", feed.streams}};
}

FeedSettings feed_from_json(const json& j) {
  FeedSettings feed;
  feed.bandwidth_limit = number_from_json(j.at("bandwidth_limit"));
  if (feed.bandwidth_limit != 0 &&
      (feed.bandwidth_limit < kLeastBandwidthLimit || feed.bandwidth_limit > kMostBandwidthLimit))
    throw std::out_of_range("a bandwidth limit is out of range");
  const auto compression = parse_compression(j.at("compress").get<std::string>());
  if (!compression) throw std::out_of_range("pages cannot be packed so");
  feed.compression = *compression;
  for (const json& codec : j.at("codecs")) {
    const bool lz4 = codec.get<std::string>() == "lz4", zstd = codec.get<std::string>() == "zstd";
    if (!lz4 && !zstd) throw std::out_of_range("a codec is not known");
    feed.codecs.lz4 |= lz4;
    feed.codecs.zstd |= zstd;
  }
  const uint64_t streams = j.contains("streams") ? number_from_json(j.at("streams")) : 1;
  if (streams < 1 || streams >= kMaxPageStreams) throw std::out_of_range("a number of streams is out of range");
  feed.streams = static_cast<int>(streams);
  return feed;
}

json task_to_json(const TaskId& task) { return {{"pid", task.pid}, {"start", task.start_time}}; }
TaskId task_from_json(const json& j) { return {pid_from_json(j.at("pid")), number_from_json(j.at("start"))}; }

/// Our own time namespace shifts start times in /proc by its boot-time offset.
int64_t own_boottime_offset_ns() {
  try {
    return parse_clock_offsets(read_file_at(AT_FDCWD, "/proc/self/timens_offsets")).boottime_ns;
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;
    return 0;  // a kernel without time namespaces
  }
}

/// As the initial time namespace shows it, as nearly as whole ticks tell.
uint64_t without_own_offset(uint64_t ticks) {
  const int64_t tick = 1'000'000'000 / ::sysconf(_SC_CLK_TCK), offset = own_boottime_offset_ns();
  const int64_t part = ((offset % tick) + tick) % tick;
  const int64_t whole = (offset - part) / tick + (2 * part > tick ? 1 : 0);
  return static_cast<uint64_t>(static_cast<int64_t>(ticks) - whole);
}

}  // namespace

SessionId new_session_id() {
  SessionId id{};
  fill_random(id);
  return id;
}

std::string to_hex(const SessionId& id) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte b : id) {
    text += kDigits[std::to_integer<unsigned>(b) >> 4];
    text += kDigits[std::to_integer<unsigned>(b) & 15];
  }
  return text;
}

std::optional<SessionId> session_from_hex(std::string_view text) {
  SessionId id{};
  if (text.size() != id.size() * 2) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    unsigned digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<unsigned>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<unsigned>(c - 'a') + 10;
    } else {
      return std::nullopt;
    }
    id[i / 2] = static_cast<std::byte>((std::to_integer<unsigned>(id[i / 2]) << 4) | digit);
  }
  return id;
}

std::string cgroup_name(const SessionId& id, Role role) {
  return "migrate-" + to_hex(id) + (role == Role::source ? "" : "-in");
}

std::string lazy_cgroup_mark(const SessionId& id) { return "migrate-" + to_hex(id) + "-lazy-"; }

std::string boot_id() {
  if (const char* fake = ::getenv("MIGRATE_FAKE_BOOT_ID"); fake != nullptr && *fake != '\0') return fake;
  std::string text = read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 256);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::optional<TaskId> TaskId::of(pid_t pid) {
  try {
    return TaskId{pid, without_own_offset(ProcDir(pid).stat().start_time)};
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return std::nullopt;
  }
}

bool TaskId::is(const TaskId& other) const {
  const uint64_t apart = start_time > other.start_time ? start_time - other.start_time : other.start_time - start_time;
  return pid == other.pid && apart <= 1;
}

bool TaskId::lives() const {
  const std::optional<TaskId> now = of(pid);
  if (!now || !now->is(*this)) return false;
  try {
    const char state = ProcDir(pid).stat().state;
    return state != 'Z' && state != 'X';
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return false;
  }
}

std::string JournalEntry::hidden_mark() const { return "." + cgroup_name(id, role); }

std::string JournalEntry::to_json() const {
  json tasks_json = json::array();
  for (const TaskId& task : tasks) tasks_json.push_back(task_to_json(task));
  json j = {{"version", 1},     {"session", to_hex(id)},    {"role", name_of(role)},   {"state", name_of(state)},
            {"epoch", epoch},   {"peer_epoch", peer_epoch}, {"boot_id", boot_id},      {"label", label},
            {"peer", peer},     {"peer_name", peer_name},   {"tasks", tasks_json},     {"peer_settled", peer_settled},
            {"reason", reason}, {"created_ns", created_ns}, {"updated_ns", updated_ns}};
  if (!tls_name.empty()) j["tls_name"] = tls_name;
  if (init) j["init"] = task_to_json(*init);
  if (!socket_folders.empty()) j["socket_folders"] = socket_folders;
  if (cgroup) j["cgroup"] = record_to_json(*cgroup);
  if (lazy) j["lazy"] = true;
  if (!lazy_cgroups.empty()) j["lazy_cgroups"] = lazy_cgroups;
  for (const IpcObject& o : left_behind) j["left_behind"].push_back(ipc_to_json(o));
  for (const HeldLock& lock : locks) j["locks"].push_back(lock_to_json(lock));
  if (feed) j["feed"] = feed_to_json(*feed);
  if (!given_up.empty()) j["given_up"] = given_up;
  return j.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

JournalEntry JournalEntry::from_json(const std::string& text, const std::string& name) {
  try {
    const json j = json::parse(text);
    if (number_from_json(j.at("version")) != 1) throw Corrupt("journal " + name, "it is of another version");
    const auto session = session_from_hex(j.at("session").get<std::string>());
    const auto role = role_named(j.at("role").get<std::string>());
    const auto state = state_named(j.at("state").get<std::string>());
    if (!session || !role || !state) throw Corrupt("journal " + name, "unknown session, role or state");
    JournalEntry e;
    e.id = *session;
    e.role = *role;
    e.state = *state;
    e.epoch = number_from_json(j.at("epoch"));
    e.peer_epoch = number_from_json(j.at("peer_epoch"));
    e.boot_id = j.at("boot_id").get<std::string>();
    e.label = j.at("label").get<std::string>();
    e.peer = j.at("peer").get<std::string>();
    e.peer_name = j.at("peer_name").get<std::string>();
    if (j.contains("tls_name")) e.tls_name = j.at("tls_name").get<std::string>();
    for (const json& task : j.at("tasks")) e.tasks.push_back(task_from_json(task));
    if (j.contains("init")) e.init = task_from_json(j.at("init"));
    if (j.contains("socket_folders")) e.socket_folders = j.at("socket_folders").get<std::vector<std::string>>();
    if (j.contains("cgroup")) e.cgroup = record_from_json(j.at("cgroup"));
    if (j.contains("lazy")) e.lazy = j.at("lazy").get<bool>();
    if (j.contains("lazy_cgroups")) e.lazy_cgroups = lazy_cgroups_from_json(j.at("lazy_cgroups"), e.id);
    if (j.contains("left_behind"))
      for (const json& one : j.at("left_behind")) e.left_behind.push_back(ipc_from_json(one));
    if (j.contains("locks"))
      for (const json& one : j.at("locks")) e.locks.push_back(lock_from_json(one));
    if (j.contains("feed")) e.feed = feed_from_json(j.at("feed"));
    if (j.contains("given_up")) e.given_up = j.at("given_up").get<std::string>();
    e.peer_settled = j.at("peer_settled").get<bool>();
    e.reason = j.at("reason").get<std::string>();
    e.created_ns = static_cast<int64_t>(number_from_json(j.at("created_ns")));
    e.updated_ns = static_cast<int64_t>(number_from_json(j.at("updated_ns")));
    return e;
  } catch (const json::exception& e) {
    throw Corrupt("journal " + name, e.what());
  } catch (const std::out_of_range& e) {
    throw Corrupt("journal " + name, e.what());
  }
}

void Journal::step(State to, Authority authority, std::string reason) {
  step_from(entry_, to, authority, std::move(reason));
}

void Journal::step_from(JournalEntry next, State to, Authority authority, std::string reason) {
  if (!legal_step(entry_.role, entry_.state, to, authority)) {
    throw Refusal("session " + to_hex(entry_.id) + " is " + std::string(name_of(entry_.state)) + " at the " +
                      std::string(name_of(entry_.role)) + " and cannot become " + std::string(name_of(to)),
                  "see `migrate resolve`");
  }
  next.state = to;
  if (!reason.empty()) next.reason = std::move(reason);
  store(next);
}

void Journal::store(JournalEntry& next) {
  next.updated_ns = now_ns();
  const std::string name = file_name(next.id, next.role, kJournal), text = next.to_json();
  replace_file(dir_.get(), name, text);
  ::unlinkat(dir_.get(), file_name(next.id, next.role, kAborted).c_str(), 0);
  entry_ = std::move(next);
  durable_ = sync_folder(dir_.get(), entry_);
  if (durable_) return;
  // A second fsync(2) of what failed may say yes without having written anything: it is written anew.
  try {
    replace_file(dir_.get(), name, text);
    durable_ = sync_folder(dir_.get(), entry_);
  } catch (const Error&) {
    // The first one stands.
  }
}

void Journal::demand_durable() const {
  if (!durable_) throw Error("sync", "the journal of session " + to_hex(entry_.id), EIO);
}

JournalStore::JournalStore(const std::string& path) : path_(path) {
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) throw Error("make the state folder", part, errno);
    if (slash == std::string::npos) break;
  }
  dir_ = open_path(path, O_RDONLY | O_DIRECTORY);
  struct stat st {};
  check(::fstat(dir_.get(), &st), "look at", path);
  if (st.st_uid != ::geteuid())
    throw Refusal("the state folder " + path + " belongs to another user", "choose another");
  if ((st.st_mode & 077) == 0) return;
  if (const std::string other = what_is_not_ours(path); !other.empty())
    throw Refusal(path + " cannot be the state folder: it has " + other + ", and is open to other users",
                  "choose a folder of its own");
  check(::fchmod(dir_.get(), 0700), "protect", path);
}

Journal JournalStore::create(JournalEntry entry) {
  Fd tree_lock;
  if (entry.role == Role::source && !entry.tasks.empty()) {
    const TaskId root = entry.tasks.front();
    tree_lock = lock_file(dir_.get(), tree_lock_name(root));
    if (!tree_lock) throw Refusal(entry.label + " is being moved already", "wait for that, or see `migrate resolve`");
    for (const JournalEntry& other : list()) {
      if (is_final(other.state) || other.boot_id != boot_id() || other.role != Role::source) continue;
      if (std::ranges::none_of(other.tasks, [&](const TaskId& task) { return task.is(root); })) continue;
      throw Refusal(entry.label + " is held by session " + to_hex(other.id), "settle it with `migrate resolve`");
    }
  }
  if (peek(entry.id, entry.role)) {
    throw Refusal("session " + to_hex(entry.id) + " was used before", "start a new one");
  }
  Fd lock = lock_file(dir_.get(), file_name(entry.id, entry.role, ".lock"));
  if (!lock) throw Refusal("session " + to_hex(entry.id) + " belongs to another process", "start a new one");
  entry.state = first_state(entry.role);
  entry.boot_id = boot_id();
  entry.created_ns = now_ns();
  Journal journal(dir_.dup(), std::move(lock), std::move(tree_lock), entry);
  journal.store(entry);
  if (!journal.durable()) {
    forget(journal.id(), journal.entry().role);
    journal.demand_durable();
  }
  return journal;
}

std::optional<Journal> JournalStore::take_over(const SessionId& id, Role role, bool raise) {
  if (!peek(id, role)) return std::nullopt;
  Fd lock = lock_file(dir_.get(), file_name(id, role, ".lock"));
  if (!lock) return std::nullopt;
  // A guardian that was killed has left it. One that listens has the lock.
  if (role == Role::destination) ::unlink(socket_path(id).c_str());
  // Read again: it may have changed before the lock was ours.
  JournalEntry entry = *peek(id, role);
  Journal journal(dir_.dup(), std::move(lock), {}, std::move(entry));
  if (raise) journal.update([](JournalEntry& e) { ++e.epoch; });
  return journal;
}

std::optional<JournalEntry> JournalStore::peek(const SessionId& id, Role role) const {
  for (const char* suffix : {kJournal, kAborted}) {
    const std::string name = file_name(id, role, suffix);
    if (is_there(dir_.get(), name)) return read_entry(dir_.get(), name);
  }
  return std::nullopt;
}

std::vector<JournalEntry> JournalStore::list(std::vector<std::string>* damaged) const {
  std::vector<JournalEntry> entries;
  for_entries(AT_FDCWD, path_, [&](const dirent& e) {
    const std::string name = e.d_name;
    const bool aborted = name.ends_with(kAborted);
    if (!aborted && !name.ends_with(kJournal)) return;
    // Written after all.
    if (aborted && is_there(dir_.get(), name.substr(0, name.size() - std::strlen(kAborted)) + kJournal)) return;
    try {
      entries.push_back(read_entry(dir_.get(), name));
    } catch (const Error& error) {
      if (damaged != nullptr) damaged->push_back(error.what());
    }
  });
  std::sort(entries.begin(), entries.end(),
            [](const JournalEntry& a, const JournalEntry& b) { return a.created_ns < b.created_ns; });
  return entries;
}

bool JournalStore::abort_by_name(const SessionId& id) noexcept {
  const std::string from = file_name(id, Role::source, kJournal), to = file_name(id, Role::source, kAborted);
  const bool named = ::renameat(dir_.get(), from.c_str(), dir_.get(), to.c_str()) == 0 || is_there(dir_.get(), to);
  if (named && !is_there(dir_.get(), from)) {
    ::fsync(dir_.get());
    return true;
  }
  forget(id, Role::source);
  return false;
}

void JournalStore::note_peer_settled(const SessionId& id) {
  std::optional<Journal> journal = take_over(id, Role::source, false);
  if (!journal) return;
  try {
    journal->update([](JournalEntry& e) { e.peer_settled = true; });
  } catch (const Error&) {
    const std::string aborted = file_name(id, Role::source, kAborted);
    if (!is_there(dir_.get(), aborted)) throw;
    ::unlinkat(dir_.get(), aborted.c_str(), 0);
    ::fsync(dir_.get());
  }
}

void JournalStore::forget(const SessionId& id, Role role) noexcept {
  ::unlinkat(dir_.get(), file_name(id, role, kJournal).c_str(), 0);
  ::fsync(dir_.get());
}

pid_t JournalStore::owner(const SessionId& id, Role role) const {
  return holder_of(dir_.get(), file_name(id, role, ".lock"));
}

pid_t JournalStore::mover(const TaskId& root) const { return holder_of(dir_.get(), tree_lock_name(root)); }

}  // namespace migrate
