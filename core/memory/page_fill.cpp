#include "core/memory/page_fill.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <climits>
#include <csignal>
#include <exception>
#include <vector>

#include "core/base/error.h"
#include "core/base/io_ring.h"

namespace migrate {
namespace {

/// Also where pieces end in memory, so that two workers do not meet in one huge page.
constexpr uint64_t kPiece = 2 << 20;
constexpr unsigned kInFlight = 8;
/// From here on a child costs less than it saves.
constexpr uint64_t kMuch = 4 << 20;
constexpr size_t kStack = 256 << 10;

/// Reads that go on where the one before ended, in one.
class Reader {
 public:
  Reader(const std::string& what, IoRing::Way way) : what_(what), ring_(kInFlight, way) {}

  void add(PagesIn part) {
    while (!part.to.empty()) {
      const uint64_t to_end = kPiece - reinterpret_cast<uint64_t>(part.to.data()) % kPiece;
      const size_t n = std::min<uint64_t>(part.to.size(), to_end);
      if (part.fd != fd_ || part.offset != offset_ + bytes_ || bytes_ + n > kPiece || into_.size() == IOV_MAX) begin();
      if (into_.empty()) {
        fd_ = part.fd;
        offset_ = part.offset;
      }
      into_.push_back({part.to.data(), n});
      bytes_ += n;
      part = {part.fd, part.offset + n, part.to.subspan(n)};
    }
  }
  void finish() {
    begin();
    while (ring_.pending() != 0) check(ring_.wait());
  }

 private:
  void begin() {
    if (into_.empty()) return;
    ring_.read(bytes_, fd_, into_, offset_);
    into_.clear();
    bytes_ = 0;
    while (const auto done = ring_.poll()) check(*done);
  }
  void check(const IoRing::Done& done) const {
    if (done.error != 0) throw Error("read", what_, done.error);
    if (done.bytes != done.tag) throw Corrupt(what_, "it is too short");
  }

  const std::string& what_;
  int fd_ = -1;
  uint64_t offset_ = 0, bytes_ = 0;
  std::vector<iovec> into_;
  IoRing ring_;
};

void read_here(std::span<const PagesIn> parts, const std::string& what, IoRing::Way way) {
  Reader reader(what, way);
  for (const PagesIn& part : parts) reader.add(part);
  reader.finish();
}

/// What the child is told, and tells: its memory is ours.
struct Task {
  std::span<const PagesIn> parts;
  const std::string& what;
  std::exception_ptr failed;
};

int read_in_child(void* argument) {
  Task& task = *static_cast<Task*>(argument);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  try {
    read_here(task.parts, task.what, IoRing::Way::ring);
  } catch (...) {
    task.failed = std::current_exception();
  }
  return 0;
}

/// As vfork(2): we stand still meanwhile, so that the child may use our heap and thread-local variables. It has a stack
/// of its own, and a copy of our descriptors.
bool read_by_child(std::span<const PagesIn> parts, const std::string& what) {
  void* stack = ::mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return false;
  Task task{parts, what, nullptr};
  const pid_t child = ::clone(read_in_child, static_cast<std::byte*>(stack) + kStack, CLONE_VM | CLONE_VFORK, &task);
  int status = 0;
  while (child > 0 && ::waitpid(child, &status, __WALL) < 0 && errno == EINTR) {
  }
  ::munmap(stack, kStack);
  if (child < 0) return false;
  if (task.failed) std::rethrow_exception(task.failed);
  if (!WIFEXITED(status)) throw Error("read", what, ECANCELED);
  return true;
}

}  // namespace

void read_pages(std::span<const PagesIn> parts, const std::string& what) {
  uint64_t bytes = 0;
  for (const PagesIn& part : parts) bytes += part.to.size();
  const bool much = bytes >= kMuch && IoRing::usual_way() == IoRing::Way::ring;
  if (!much || !read_by_child(parts, what)) read_here(parts, what, IoRing::Way::calls);
}

}  // namespace migrate
