// Descriptors of the workload `wild`: each object knows what it must hold.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <memory>
#include <utility>

#include "wild_memory.h"

namespace wild {

/// Words that are handed over an execve(2).
using Words = std::vector<uint64_t>;

/// A descriptor that closes itself.
class Handle {
 public:
  explicit Handle(int fd = -1) : fd_(fd) {}
  ~Handle() {
    if (fd_ != -1) close(fd_);
  }
  Handle(Handle&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Handle& operator=(Handle&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

  /// The same open file under another number; the old number is closed.
  void renumber(Random& random) {
    const int flag = fcntl(fd_, F_GETFD);
    const int fd = must(fcntl(fd_, F_DUPFD_CLOEXEC, 20 + static_cast<int>(random.below(200))), "F_DUPFD");
    if (!(flag & FD_CLOEXEC)) fcntl(fd, F_SETFD, 0);
    close(std::exchange(fd_, fd));
  }

 private:
  int fd_;
};

class Object {
 public:
  virtual ~Object() = default;
  virtual void use(Random& random) = 0;
  virtual void verify() const = 0;
  /// Adds what a program needs that goes on with it, its descriptors surviving an execve(2); false: it goes with it.
  virtual bool hand_over(Words&) { return false; }
};

/// Numbers that go in at one end and come out at the other, of a pipe or a socket pair, watched by an epoll or not.
class Channel : public Object {
 public:
  Channel(Random& random) {
    int fds[2];
    const bool pipe = random.chance(50);
    must(pipe ? pipe2(fds, O_CLOEXEC | O_NONBLOCK)
              : socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds),
         "pipe2 or socketpair");
    out_ = Handle(fds[0]);
    in_ = Handle(fds[1]);
    if (random.chance(50)) watch();
  }
  Channel(const uint64_t*& w)
      : out_(static_cast<int>(w[0])), in_(static_cast<int>(w[1])), sent_(w[2]), received_(w[3]) {
    w += 4;
    fcntl(out_.get(), F_SETFD, FD_CLOEXEC);
    fcntl(in_.get(), F_SETFD, FD_CLOEXEC);
  }

  void use(Random& random) override {
    if (random.chance(10)) return (random.chance(50) || epoll_.get() != -1 ? in_ : out_).renumber(random);
    if (random.chance(55)) {
      for (size_t n = random.below(20); n > 0 && sent_ - received_ < 200; --n, ++sent_)
        expect(write(in_.get(), &sent_, 8) == 8, "a channel takes no more");
    } else {
      for (size_t n = random.below(20); n > 0 && sent_ > received_; --n) {
        uint64_t got = 0;
        expect(read(out_.get(), &got, 8) == 8, "a channel has less than was sent");
        workload::expect_equal(got, received_, "number in a channel");
        ++received_;
      }
    }
    verify();
  }

  void verify() const override {
    int waiting = 0;
    must(ioctl(out_.get(), FIONREAD, &waiting), "FIONREAD");
    workload::expect_equal(static_cast<uint64_t>(waiting), 8 * (sent_ - received_), "bytes in a channel");
    if (epoll_.get() == -1) return;
    epoll_event event{};
    workload::expect_equal(must(epoll_wait(epoll_.get(), &event, 1, 0), "epoll_wait"), sent_ > received_ ? 1 : 0,
                           "events of a channel");
  }

  bool hand_over(Words& words) override {
    fcntl(out_.get(), F_SETFD, 0);
    fcntl(in_.get(), F_SETFD, 0);
    words.insert(words.end(), {static_cast<uint64_t>(out_.get()), static_cast<uint64_t>(in_.get()), sent_, received_});
    return true;
  }

 private:
  void watch() {
    epoll_ = Handle(must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1"));
    epoll_event event{.events = EPOLLIN, .data = {.u64 = 7}};
    must(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, out_.get(), &event), "epoll_ctl");
  }

  Handle out_, in_, epoll_;
  uint64_t sent_ = 0, received_ = 0;
};

class Counter : public Object {
 public:
  Counter() : fd_(must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")) {}

  void use(Random& random) override {
    if (random.chance(20)) fd_.renumber(random);
    add(1 + random.below(1000));
  }
  void verify() const override {
    uint64_t got = 0;
    if (read(fd_.get(), &got, 8) != 8) got = 0;
    workload::expect_equal(got, value_, "an eventfd");
    if (value_ != 0) expect(write(fd_.get(), &value_, 8) == 8, "write to an eventfd");
  }

 private:
  void add(uint64_t n) {
    expect(write(fd_.get(), &n, 8) == 8, "write to an eventfd");
    value_ += n;
  }
  Handle fd_;
  uint64_t value_ = 0;
};

/// A file with a position; perhaps without a name.
class File : public Object {
 public:
  File(Random& random, const std::string& path) : path_(path), salt_(random.next()) {
    fd_ = Handle(must(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), ("open " + path).c_str()));
    owner_ = getpid();
  }
  ~File() override {
    if (named_ && owner_ == getpid()) unlink(path_.c_str());
  }

  void use(Random& random) override {
    switch (random.below(6)) {
      case 0:
        if (!named_) break;
        must(unlink(path_.c_str()), "unlink");
        named_ = false;
        return;
      case 1:
        return fd_.renumber(random);
      case 2:
        position_ = must(lseek(fd_.get(), static_cast<off_t>(random.below(size_ + 1)), SEEK_SET), "lseek");
        return;
      case 3:
        if (size_ == 0) break;
        size_ = random.below(size_);
        must(ftruncate(fd_.get(), static_cast<off_t>(size_)), "ftruncate");
        position_ = must(lseek(fd_.get(), 0, SEEK_END), "lseek");
        return;
      default:
        break;
    }
    append(1 + random.below(3000));
  }

  void verify() const override {
    struct stat s {};
    must(fstat(fd_.get(), &s), "fstat");
    workload::expect_equal(static_cast<size_t>(s.st_size), size_, "size of a file");
    workload::expect_equal(must(lseek(fd_.get(), 0, SEEK_CUR), "lseek"), position_, "position in a file");
    std::vector<uint8_t> content(size_);
    expect(pread(fd_.get(), content.data(), size_, 0) == static_cast<ssize_t>(size_), "pread of a file");
    workload::expect_pattern(content.data(), size_, salt_, "a file");
  }

 private:
  void append(size_t n) {
    if (size_ > 60'000) return;
    std::vector<uint8_t> data(n);
    for (size_t i = 0; i < n; ++i) data[i] = workload::pattern(static_cast<uint64_t>(position_) + i, salt_);
    expect(write(fd_.get(), data.data(), n) == static_cast<ssize_t>(n), "write to a file");
    position_ += static_cast<off_t>(n);
    size_ = std::max(size_, static_cast<size_t>(position_));
  }

  std::string path_;
  uint64_t salt_;
  Handle fd_;
  pid_t owner_ = 0;
  bool named_ = true;
  size_t size_ = 0;
  off_t position_ = 0;
};

/// A memfd that is written through its descriptor and through a mapping, and punched.
class Memfd : public Object {
 public:
  Memfd(Random& random) : id_(random.next() | 1), versions_(1 + random.below(16), 0) {
    fd_ = Handle(must(memfd_create("wild", MFD_CLOEXEC), "memfd_create"));
    must(ftruncate(fd_.get(), static_cast<off_t>(length())), "ftruncate");
    if (!random.chance(60)) return;
    void* at = mmap(nullptr, length(), PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    expect(at != MAP_FAILED, "mmap of a memfd");
    at_ = static_cast<std::byte*>(at);
  }
  ~Memfd() override {
    if (at_) munmap(at_, length());
  }

  void use(Random& random) override {
    const size_t page = random.below(versions_.size());
    const auto where = static_cast<off_t>(page * page_size);
    switch (random.below(4)) {
      case 0:
        must(fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, where, page_size), "fallocate");
        versions_[page] = 0;
        return;
      case 1:
        if (at_) return write_page(at_ + where, id_, page, versions_[page] = ++version_);
        [[fallthrough]];
      default: {
        std::vector<uint64_t> data(page_size / 8);
        write_page(data.data(), id_, page, versions_[page] = ++version_);
        expect(pwrite(fd_.get(), data.data(), page_size, where) == ssize_t{page_size}, "pwrite to a memfd");
      }
    }
  }

  void verify() const override {
    std::vector<uint64_t> data(page_size / 8);
    for (size_t i = 0; i < versions_.size(); ++i) {
      expect(pread(fd_.get(), data.data(), page_size, static_cast<off_t>(i * page_size)) == ssize_t{page_size},
             "pread of a memfd");
      verify_page(data.data(), id_, i, versions_[i], "a memfd");
      if (at_) verify_page(at_ + i * page_size, id_, i, versions_[i], "a memfd's mapping");
    }
  }

 private:
  size_t length() const { return versions_.size() * page_size; }
  uint64_t id_;
  std::vector<uint32_t> versions_;
  uint32_t version_ = 0;
  Handle fd_;
  std::byte* at_ = nullptr;
};

}  // namespace wild
