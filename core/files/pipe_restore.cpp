#include "core/files/pipe_restore.h"

#include <limits.h>
#include <sys/ioctl.h>

#include "core/files/paths.h"
#include "core/files/pipe.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/pipe-data.pb.h"

namespace migrate {
namespace {

/// O_LARGEFILE as the kernel has it; the C library's is 0 on 64-bit machines.
constexpr uint32_t kLargeFile = 0100000;

std::string to_string(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// What waits in a FIFO, which stays there.
std::string waiting_bytes(int fifo, size_t bytes) {
  int ends[2];
  check(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), "make", "a pipe");
  const Fd out(ends[0]), in(ends[1]);
  // tee(2) duplicates buffers one by one.
  check(::fcntl(in.get(), F_SETPIPE_SZ, check(::fcntl(fifo, F_GETPIPE_SZ), "ask the size of", "a FIFO")),
        "set the size of", "a pipe");
  const ssize_t n = check(::tee(fifo, in.get(), bytes, SPLICE_F_NONBLOCK), "copy the data in", "a FIFO");
  std::string text(static_cast<size_t>(n), '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t part = check(::read(out.get(), text.data() + done, text.size() - done), "read", "a pipe");
    if (part == 0) break;
    done += static_cast<size_t>(part);
  }
  return text;
}

}  // namespace

PipeRestorer::PipeRestorer(const ImageSet& images)
    : pipe_data_(read_data(images, "pipes-data.img", magic::kPipesData)),
      fifo_data_(read_data(images, "fifo-data.img", magic::kFifoData)) {
  read_packets(images);
}

std::map<uint32_t, PipeRestorer::Data> PipeRestorer::read_data(const ImageSet& images, const char* name,
                                                               uint32_t magic) {
  std::map<uint32_t, Data> all;
  auto reader = images.read(name, magic);
  img::pipe_data_entry entry;
  while (reader && reader->next(entry)) {
    const auto bytes = reader->raw(entry.bytes());
    if (!all.emplace(entry.pipe_id(), Data{bytes, entry.size(), {}}).second) throw Corrupt(name, "a pipe stands twice");
  }
  return all;
}

void PipeRestorer::read_packets(const ImageSet& images) {
  auto reader = images.read(kPipePacketsImage, kPipePacketsMagic);
  ext::PipePackets packets;
  while (reader && reader->next(packets)) {
    auto& pipes = packets.fifo() ? fifo_data_ : pipe_data_;
    const auto it = pipes.find(packets.pipe_id());
    if (it == pipes.end()) throw Corrupt(kPipePacketsImage, "it names a pipe without data");
    uint64_t sum = 0;
    for (const uint32_t n : packets.lengths()) {
      if (n == 0 || n > PIPE_BUF) throw Corrupt(kPipePacketsImage, "a packet has an impossible length");
      sum += n;
    }
    if (sum != it->second.bytes.size()) throw Corrupt(kPipePacketsImage, "packets and data differ in length");
    it->second.packets.assign(packets.lengths().begin(), packets.lengths().end());
  }
}

void PipeRestorer::fill(int fd, const Data& data) {
  if (data.size > INT32_MAX) throw Corrupt("pipes-data.img", "a pipe has an impossible size");
  // A pipe larger than fs.pipe-max-size cannot be had; smaller is fine as long as the data fit.
  if (data.size != 0 && ::fcntl(fd, F_GETPIPE_SZ) != static_cast<int>(data.size))
    ::fcntl(fd, F_SETPIPE_SZ, static_cast<int>(data.size));
  size_t done = 0;
  size_t packet = 0;
  if (!data.packets.empty()) check(::fcntl(fd, F_SETFL, O_NONBLOCK | O_DIRECT), "set the flags of", "a pipe");
  while (done < data.bytes.size()) {
    // Up to PIPE_BUF a write is all or nothing, so that packets stay whole.
    const size_t want = data.packets.empty() ? data.bytes.size() - done : data.packets[packet++];
    const ssize_t n = ::write(fd, data.bytes.data() + done, want);
    if (n <= 0) throw Error("put the data back into", "a pipe (raise fs.pipe-max-size)", n < 0 ? errno : ENOSPC);
    done += static_cast<size_t>(n);
  }
}

Fd PipeRestorer::open_pipe(const img::pipe_entry& entry, const FileOwner& owner, const FileOwner& ours) {
  const auto [it, fresh] = pipes_.try_emplace(entry.pipe_id());
  Ends& ends = it->second;
  if (fresh) {
    int fds[2];
    check(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), "make", "a pipe");
    ends.read.reset(fds[0]);
    ends.write.reset(fds[1]);
    give_file(fds[0], owner, ours, "a pipe");
    const auto data = pipe_data_.find(entry.pipe_id());
    if (data != pipe_data_.end()) fill(ends.write.get(), data->second);
  }
  const int access = static_cast<int>(entry.flags()) & O_ACCMODE;
  if (access == O_ACCMODE) throw Corrupt("files.img", "a pipe has an impossible access mode");
  // What pipe2 made has no O_LARGEFILE, unlike what open(2) makes: the program sees it with F_GETFL.
  const bool opened_by_path = (entry.flags() & kLargeFile) != 0;
  bool& given = access == O_RDONLY ? ends.read_given : ends.write_given;
  if (access != O_RDWR && !opened_by_path && !given) {
    given = true;
    return (access == O_RDONLY ? ends.read : ends.write).dup();
  }
  return reopen(ends.read.get(), access | O_NONBLOCK, "a pipe");
}

/// Puts into a FIFO what waited in it. Hosts that are namespaces of one kernel have one pipe for it, in which that
/// still waits: the source holds it until the tree runs here, or goes on there.
void PipeRestorer::fill_fifo(int fd, const Data& data) {
  int there = 0;
  check(::ioctl(fd, FIONREAD, &there), "ask the fill of", "a FIFO");
  if (there == 0 || data.bytes.empty()) return fill(fd, data);
  if (static_cast<size_t>(there) != data.bytes.size() || waiting_bytes(fd, data.bytes.size()) != to_string(data.bytes))
    throw Refusal("a FIFO of the tree has other data than it had, since others have it open, too",
                  "try again when they are gone");
}

/// Both directions at once: neither end has to wait for the other, and data stays while users are opened. Who has one
/// direction only gets no more by it; empty if it does without.
Fd PipeRestorer::open_both_ways(int path, int access, bool data, TaskPaths& paths) {
  try {
    return reopen(path, O_RDWR | O_NONBLOCK, "a FIFO");
  } catch (const Error& e) {
    if (e.code() != EACCES && e.code() != EPERM) throw;
    if (!TaskPaths::may(path, access == O_RDONLY ? R_OK : access == O_WRONLY ? W_OK : R_OK | W_OK)) throw;
    // What waits in it is written again.
    if (data && access == O_RDONLY) throw;
    if (access == O_RDONLY) return {};
    if (!paths.by_root()) throw;
  }
  Fd both;
  paths.as_self([&] { both = reopen(path, O_RDWR | O_NONBLOCK, "a FIFO"); });
  return both;
}

Fd PipeRestorer::open_fifo(const img::fifo_entry& entry, int path, uint32_t flags, TaskPaths& paths, bool unwritten) {
  const int access = static_cast<int>(flags) & O_ACCMODE;
  if (access == O_ACCMODE) throw Corrupt("files.img", "a FIFO has an impossible access mode");
  if (!fifos_.contains(entry.pipe_id())) {
    const auto data = fifo_data_.find(entry.pipe_id());
    const bool some = data != fifo_data_.end() && !data->second.bytes.empty();
    if (unwritten && !some) {
      Fd reader = reopen(path, O_RDONLY | O_NONBLOCK, "a FIFO");
      if (data != fifo_data_.end()) fill(reader.get(), data->second);  // its size, that is
      return reader;
    }
    if (Fd both = open_both_ways(path, access, some, paths)) {
      if (data != fifo_data_.end()) fill_fifo(both.get(), data->second);
      fifos_.emplace(entry.pipe_id(), std::move(both));
    }
  }
  return reopen(path, access | O_NONBLOCK, "a FIFO");
}

}  // namespace migrate
