// What the small workloads share. Each is one kernel behaviour, a few lines that set it up and give a function that
// looks whether it is still there; those of one kernel object are a file, all are one program (small.cpp). A new one
// needs nothing but its WORKLOAD.
#pragma once

#include <memory>
#include <vector>

#include "../workload.h"

namespace workload {

/// Throws what is wrong. It is asked again and again, so it puts back what it uses up.
using Verify = std::function<void()>;

/// The folder that a small workload has for itself.
class Place {
 public:
  explicit Place(std::string dir) : dir_(std::move(dir)) {}
  const std::string& dir() const { return dir_; }
  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  /// Opens a file of that name in the folder.
  int open_file(const std::string& name, int flags = O_RDWR | O_CREAT, mode_t mode = 0600) const;

 private:
  std::string dir_;
};

/// Thrown by the set-up where this machine cannot do what is tested.
struct NotHere : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws NotHere where this is forbidden, as in containers.
void allowed(long result, const std::string& what);

struct Small {
  std::string name;  // SUBJECT.NAME
  Verify (*set_up)(const Place&);
};

/// All of them, in no order.
std::vector<Small>& all_small();

struct Registered {
  Registered(const char* name, Verify (*set_up)(const Place&)) { all_small().push_back({name, set_up}); }
};

// The body sets up in `place` and gives the Verify.
#define WORKLOAD(subject, name)                                                                          \
  static workload::Verify subject##_##name(const workload::Place& place);                                \
  static const workload::Registered registered_##subject##_##name{#subject "." #name, subject##_##name}; \
  static workload::Verify subject##_##name([[maybe_unused]] const workload::Place& place)

/// Runs `set_up` in a child, which answers whether what it gives holds.
Verify in_child(const std::function<Verify()>& set_up);

/// The same, in a thread.
Verify in_thread(const std::function<Verify()>& set_up);

/// A thread is in `call` all the time, which must not end, but give `want` once `wake` has run; -errno if it fails.
/// `again` runs when it has ended, before it is made again.
Verify blocked(
    const std::function<long()>& call, const std::function<void()>& wake, long want,
    const std::function<void()>& again = [] {});

/// A child that waits until its parent is gone; it may be killed. `first` is what it does before.
pid_t idle_child(const std::function<void()>& first = [] {});

/// A value that a look at the system gives is what it was at first.
template <typename Look>
Verify stays(const std::string& what, Look look) {
  const auto was = look();
  return [what, look, was] {
    const auto is = look();
    if constexpr (std::is_arithmetic_v<decltype(look())>)
      expect_equal(is, was, what);
    else
      expect(is == was, what + " differs");
  };
}

constexpr size_t kPage = 4096;

/// New mappings of whole pages, anonymous and private unless said otherwise.
char* area(size_t pages, int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1,
           off_t offset = 0);

/// Whether the byte there can be read, or written (it is made 0 then, where it cannot be read).
bool readable(const void* at);
bool writable(void* at);

/// What a file of /proc says, whole.
std::string text_of(const std::string& path);

/// The words after "KEY:" in such a text; "" if there is no such line.
std::string field(const std::string& text, const std::string& key);

/// What smaps says of the mapping at an address: the value of a field, as VmFlags.
std::string smaps(const void* at, const std::string& key);
inline bool has_vm_flag(const void* at, const std::string& flag) {
  return (smaps(at, "VmFlags") + " ").find(flag + " ") != std::string::npos;
}

/// Both ends, close-on-exec.
struct Pipe {
  int in = -1, out = -1;
};
Pipe make_pipe(int flags = 0);

/// Of a pair of Unix sockets, close-on-exec.
struct Ends {
  int from = -1, to = -1;
};
Ends socket_ends(int type);

/// Bytes that can be read now without waiting, up to 64 KiB; "" when there are none.
std::string drain(int fd);
void put(int fd, const std::string& text);

void fill(char* at, size_t pages, uint64_t salt);
void expect_filled(const char* at, size_t pages, uint64_t salt, const std::string& what);

}  // namespace workload

using namespace workload;  // NOLINT: the files of small workloads are nothing but workloads
