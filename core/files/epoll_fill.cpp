#include "core/files/epoll_fill.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>

#include "core/files/epoll.h"
#include "core/files/image_tables.h"

namespace migrate {
namespace {

/// A table that comes before ours: its epolls and its numbers.
struct Lower {
  std::set<uint32_t> epolls, numbers;
};

std::vector<Lower> lower_tables(const ImageSet& images, uint32_t files_id) {
  std::vector<Lower> lower;
  for (const uint32_t id : table_ids(images)) {
    if (id >= files_id) break;
    Lower& one = lower.emplace_back();
    for (const img::fdinfo_entry& e : read_table(images, id)) {
      one.numbers.insert(e.fd());
      if (e.type() == img::fd_types::EVENTPOLL) one.epolls.insert(e.id());
    }
  }
  return lower;
}

/// Whether no other table has this epoll.
bool only_in(const ImageSet& images, uint32_t files_id, uint32_t epoll) {
  for (const uint32_t id : table_ids(images)) {
    if (id == files_id) continue;
    for (const img::fdinfo_entry& e : read_table(images, id))
      if (e.id() == epoll) return false;
  }
  return true;
}

/// A duplicate under a number that is not that one.
Fd duplicate_beside(int number, int fd) {
  const auto duplicate = [fd] {
    return Fd(check(::fcntl(fd, F_DUPFD_CLOEXEC, 0), "duplicate descriptor", std::to_string(fd)));
  };
  Fd copy = duplicate();
  return copy.get() == number ? duplicate() : std::move(copy);
}

/// For as long as it lives a number leads to `file`, whatever it led to before.
class Placed {
 public:
  Placed(int number, const Fd& file) : number_(number) {
    flags_ = ::fcntl(number, F_GETFD);
    if (flags_ >= 0) before_ = Fd(check(::fcntl(number, F_DUPFD_CLOEXEC, 0), "duplicate", std::to_string(number)));
    // What was fetched may have got that very number.
    const Fd copy = duplicate_beside(number, file.get());
    check(::dup3(copy.get(), number, O_CLOEXEC), "install descriptor", std::to_string(number));
  }
  ~Placed() {
    if (before_)
      ::dup3(before_.get(), number_, (flags_ & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0);
    else
      ::close(number_);
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

 private:
  int number_;
  int flags_;
  Fd before_;
};

void change_epoll(int epfd, int operation, const img::eventpoll_tfd_entry& target, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = target.data();
  check(::epoll_ctl(epfd, operation, static_cast<int>(target.tfd()), &event), "add to an epoll descriptor",
        std::to_string(target.tfd()));
}

/// A one-shot entry that was delivered: the kernel took all its events away, EPOLLERR and EPOLLHUP too.
bool disarmed(const img::eventpoll_tfd_entry& target) {
  constexpr uint32_t kModes = EPOLLONESHOT | EPOLLET | EPOLLWAKEUP;
  return (target.events() & EPOLLONESHOT) != 0 && (target.events() & ~kModes) == 0;
}

/// epoll_ctl(2) always arms for EPOLLERR and EPOLLHUP; only a delivery disarms. So one is provoked, for whatever the
/// file is ready for now. A file that is ready for nothing stays armed for those two.
void add_disarmed(int epfd, const img::eventpoll_tfd_entry& target, bool alone) {
  constexpr uint32_t kAnything = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDNORM | EPOLLWRNORM;
  change_epoll(epfd, EPOLL_CTL_ADD, target, alone ? target.events() | kAnything : target.events());
  if (!alone) return;
  epoll_event event{};
  if (::epoll_wait(epfd, &event, 1, 0) == 0) change_epoll(epfd, EPOLL_CTL_MOD, target, target.events());
}

/// An entry that this table adds.
struct Entry {
  const img::eventpoll_tfd_entry* target;
  Fd elsewhere;  ///< the file, where the number does not lead to it
};

void add(int epfd, const Entry& entry, bool alone) {
  // The epoll itself may have that number.
  const Fd epoll = duplicate_beside(static_cast<int>(entry.target->tfd()), epfd);
  std::optional<Placed> placed;
  if (entry.elsewhere) placed.emplace(static_cast<int>(entry.target->tfd()), entry.elsewhere);
  if (disarmed(*entry.target)) return add_disarmed(epoll.get(), *entry.target, alone);
  change_epoll(epoll.get(), EPOLL_CTL_ADD, *entry.target, entry.target->events());
}

class Filler {
 public:
  Filler(const ImageSet& images, uint32_t files_id, const std::vector<img::fdinfo_entry>& table,
         const std::function<Fd(uint32_t)>& fetch)
      : fetch_(fetch), lower_(lower_tables(images, files_id)), elsewhere_(read_watched_files(images)) {
    for (const img::fdinfo_entry& e : table) numbers_.insert(e.fd());
  }

  /// What is to be disarmed comes first.
  std::vector<Entry> entries_of(uint32_t epoll, const img::eventpoll_file_entry& list) const {
    std::vector<Entry> mine;
    for (int i = 0; i < list.tfd_size(); ++i) {
      const img::eventpoll_tfd_entry& target = list.tfd(i);
      const auto file = elsewhere_.find({epoll, static_cast<uint32_t>(i)});
      if (file != elsewhere_.end()) {
        // The lowest table that has the epoll.
        if (std::ranges::none_of(lower_, [&](const Lower& l) { return l.epolls.contains(epoll); }))
          mine.push_back({&target, fetch_(file->second)});
        continue;
      }
      // The lowest that has both (see EpollDumper).
      const auto adds = [&](const Lower& l) { return l.epolls.contains(epoll) && l.numbers.contains(target.tfd()); };
      if (numbers_.contains(target.tfd()) && std::ranges::none_of(lower_, adds)) mine.push_back({&target, {}});
    }
    std::ranges::stable_partition(mine, [](const Entry& e) { return disarmed(*e.target); });
    return mine;
  }

 private:
  const std::function<Fd(uint32_t)>& fetch_;
  std::vector<Lower> lower_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> elsewhere_;
  std::set<uint32_t> numbers_;
};

}  // namespace

int highest_watched(const std::vector<img::fdinfo_entry>& table, const std::map<uint32_t, img::file_entry>& entries) {
  int highest = -1;
  for (const img::fdinfo_entry& e : table) {
    const auto entry = entries.find(e.id());
    if (e.type() != img::fd_types::EVENTPOLL || entry == entries.end()) continue;
    for (const img::eventpoll_tfd_entry& t : entry->second.epfd().tfd()) {
      if (t.tfd() >= kMaxFd) throw Corrupt("files.img", "an epoll watches an impossible number");
      highest = std::max(highest, static_cast<int>(t.tfd()));
    }
  }
  return highest;
}

void fill_epolls(const ImageSet& images, uint32_t files_id, const std::vector<img::fdinfo_entry>& table,
                 const std::map<uint32_t, img::file_entry>& entries, const std::function<Fd(uint32_t)>& fetch) {
  std::map<uint32_t, int> epolls;
  for (const img::fdinfo_entry& e : table)
    if (e.type() == img::fd_types::EVENTPOLL) epolls.emplace(e.id(), static_cast<int>(e.fd()));
  if (epolls.empty()) return;
  const Filler filler(images, files_id, table, fetch);
  for (const auto& [id, epfd] : epolls) {
    // While the list holds nothing armed, a wait reports nothing but what is to be disarmed.
    const bool alone = only_in(images, files_id, id);
    for (const Entry& entry : filler.entries_of(id, entries.at(id).epfd())) add(epfd, entry, alone);
  }
}

}  // namespace migrate
