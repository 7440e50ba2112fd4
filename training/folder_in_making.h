// A folder that is whole or not there: made beside its place, and renamed.
#pragma once

#include <filesystem>

namespace notellm {

class FolderInMaking {
 public:
  // Makes DESTINATION.partial. Throws Error(io): it or the destination is there already, as a killed run or anyone may
  // have left it, and stays as it is; or the folder cannot be made.
  explicit FolderInMaking(const std::filesystem::path& destination);
  FolderInMaking(const FolderInMaking&) = delete;
  FolderInMaking& operator=(const FolderInMaking&) = delete;
  // Unpublished, it goes.
  ~FolderInMaking();

  const std::filesystem::path& path() const { return partial_; }
  // The folder and its entries, whose contents their writers have synced, get the name. Throws Error(io).
  void publish();

 private:
  std::filesystem::path destination_, partial_;
  bool published_ = false;
};

}  // namespace notellm
