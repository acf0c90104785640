#include "migrate/session/journal/journal.h"

#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "core/base/procfs.h"
#include "migrate/session/telling/fault.h"

namespace migrate {
namespace {

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

std::string next_name(const std::string& name) { return name + ".new"; }

/// Replaces `name` as a whole; after an exception the old content is still there.
void replace_file(int dir, const std::string& name, const std::string& text) {
  const std::string temporary = next_name(name);
  try {
    // Not O_TRUNC: it may have the room that was reserved for this.
    const Fd fd = open_at(dir, temporary, O_WRONLY | O_CREAT | O_NOFOLLOW, 0600);
    write_full(fd.get(), as_bytes_of(text), name);
    check(::ftruncate(fd.get(), static_cast<off_t>(text.size())), "cut", name);
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

}  // namespace

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

void Journal::reserve() {
  constexpr size_t kMore = 16 << 10;  // than the entry has now
  const std::string name = next_name(file_name(entry_.id, entry_.role, kJournal));
  const Fd fd = open_at(dir_.get(), name, O_WRONLY | O_CREAT | O_NOFOLLOW, 0600);
  const int error = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(entry_.to_json().size() + kMore));
  if (error == 0) return;
  ::unlinkat(dir_.get(), name.c_str(), 0);
  throw Error("reserve room for", "the journal of session " + to_hex(entry_.id), error);
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
  ::unlinkat(dir_.get(), next_name(file_name(id, role, kJournal)).c_str(), 0);
  ::fsync(dir_.get());
}

pid_t JournalStore::owner(const SessionId& id, Role role) const {
  return holder_of(dir_.get(), file_name(id, role, ".lock"));
}

pid_t JournalStore::mover(const TaskId& root) const { return holder_of(dir_.get(), tree_lock_name(root)); }

}  // namespace migrate
