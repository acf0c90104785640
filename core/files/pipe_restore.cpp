#include "core/files/pipe_restore.h"

#include <limits.h>

#include "core/files/paths.h"
#include "core/files/pipe.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/pipe-data.pb.h"

namespace migrate {
namespace {

/// O_LARGEFILE as the kernel has it; the C library's is 0 on 64-bit machines.
constexpr uint32_t kLargeFile = 0100000;

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

Fd PipeRestorer::open_fifo(const img::fifo_entry& entry, int path, uint32_t flags, TaskPaths& paths) {
  const int access = static_cast<int>(flags) & O_ACCMODE;
  if (access == O_ACCMODE) throw Corrupt("files.img", "a FIFO has an impossible access mode");
  if (!fifos_.contains(entry.pipe_id())) {
    const auto data = fifo_data_.find(entry.pipe_id());
    const bool some = data != fifo_data_.end() && !data->second.bytes.empty();
    if (Fd both = open_both_ways(path, access, some, paths)) {
      if (data != fifo_data_.end()) fill(both.get(), data->second);
      fifos_.emplace(entry.pipe_id(), std::move(both));
    }
  }
  return reopen(path, access | O_NONBLOCK, "a FIFO");
}

}  // namespace migrate
