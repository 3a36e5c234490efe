module github.com/understudy-ha/understudy

go 1.26.7

require github.com/goccy/go-yaml v1.19.2
