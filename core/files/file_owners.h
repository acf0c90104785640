// Whose an open file is: its owner, and for Unix sockets who the kernel says made the other end. Recorded in
// migrate-files.img, and given back as far as it is no gain.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/files/file_credentials.h"
#include "core/files/open_file.h"
#include "core/image/image_set.h"

namespace migrate {

inline constexpr char kFileOwnersImage[] = "migrate-files.img";
inline constexpr uint32_t kFileOwnersMagic = 0x4d494746;

/// What SO_PEERCRED and SO_PEERGROUPS tell (unix(7)): the process that called socketpair(2), listen(2) or connect(2),
/// and its effective ids at that moment.
struct PeerCredentials {
  uint32_t pid = 0;  ///< 0: nobody that can be named
  uint32_t uid = 0, gid = 0;
  std::vector<uint32_t> groups;  ///< supplementary
  auto operator<=>(const PeerCredentials&) const = default;
};

/// Users and groups.
struct UserIds {
  std::set<uint32_t> uids, gids;
  bool include(const PeerCredentials& who) const;
};

/// nullopt for a socket that nobody is connected to or listens on, and for datagram sockets that are not of a pair.
std::optional<PeerCredentials> peer_credentials(int socket, const std::string& who);

struct FileOwner {
  uint32_t uid = 0, gid = 0;
  std::optional<PeerCredentials> peer;
  std::optional<uint32_t> mode;  ///< of a pipe
};

/// Adds a file of the dump's to the image.
void record_owner(DumpContext& context, const OpenFile& file, const std::optional<PeerCredentials>& peer = {});

/// Why a program that has such a socket is refused where nothing may be said of others than its own; after its name.
std::string tells_of_a_stranger(uint32_t uid, uint32_t gid);
inline constexpr char kStrangerRemedy[] = "have the program close it, or make it as its own user";

class FileOwners {
 public:
  /// `only`: the images may be hostile, and nothing is given to others than these. nullopt: all is as they say.
  FileOwners(const ImageSet& images, std::optional<UserIds> only);

  /// As recorded; nullptr for images that do not say.
  const FileOwner* recorded(uint32_t file_id) const;
  /// Whose it will be; one of `holders`' where the images do not say, or may not.
  FileOwner owner(uint32_t file_id, const Holders& holders) const;
  /// Of a Unix socket whose peer is known: what it will tell. Without a record: the first of the holders, no pid.
  PeerCredentials peer(uint32_t file_id, const Holders& holders) const;
  /// Whether something may be said to be theirs.
  bool allows(uint32_t uid, uint32_t gid) const;
  /// Refusal for a Unix socket that would tell of somebody who is none of those. `who` names it.
  void check_peer(uint32_t file_id, const std::string& who) const;

 private:
  std::map<uint32_t, FileOwner> owners_;  ///< by file id
  std::optional<UserIds> only_;
};

/// fchown(2), unless it is that of `now` already, and fchmod(2) where a mode is known. The owner of a socket is also
/// who it is for SO_REUSEPORT: set it before bind(2).
void give_file(int fd, const FileOwner& to, const FileOwner& now, const std::string& who);

}  // namespace migrate
